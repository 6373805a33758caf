//! A configuration's text with the paths of another generation.

use zeroize::Zeroizing;

use crate::conf::render::Rendered;
use crate::state::generation::Generations;

/// The same text, naming the generation `number`. A text that names no generation stays as it is.
#[must_use]
pub(crate) fn rebase(text: &Rendered, generations: &Generations, number: u64) -> Rendered {
    let path = |number| Some(format!("{}/", generations.directory_of(number).to_str()?));
    let named = generations.named_in(text.text()).and_then(path);
    let (Some(named), Some(wanted)) = (named, path(number)) else { return text.clone() };
    Rendered::from_text(Zeroizing::new(text.text().replace(&named, &wanted)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_text_can_name_another_generation() {
        let generations = Generations::of(Path::new("/state"));
        let text = |number| {
            let path = format!("/state/generations/{number}");
            Rendered::from_text(Zeroizing::new(format!("cert_file: \"{path}/cert.pem\"\nkey_file: \"{path}/key.pem\"")))
        };
        assert_eq!(rebase(&text("000041"), &generations, 42).text(), text("000042").text());
        let elsewhere = Rendered::from_text(Zeroizing::new("cert_file: /elsewhere/generations/000041/cert.pem".into()));
        assert_eq!(rebase(&elsewhere, &generations, 42).text(), elsewhere.text());
    }
}
