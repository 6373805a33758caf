//! The request of the query protocols: `Action=…&AutoScalingGroupNames.member.1=…`.

/// The name-value pairs of a form.
#[derive(Debug)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self(pairs.map(|(name, value)| (decode(name), decode(value))).collect())
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }

    pub(super) fn number(&self, name: &str) -> Option<usize> {
        self.text(name)?.parse().ok()
    }

    /// The values of `PREFIX1`, `PREFIX2` …
    pub(super) fn list(&self, prefix: &str) -> Vec<String> {
        (1..).map_while(|number| self.text(&format!("{prefix}{number}"))).collect()
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or_default(),
                _ => b'?',
            },
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forms_values_are_decoded_and_its_lists_found() {
        let form = Form::parse("Action=X&Names.member.1=a%2Fb+c&Names.member.2=%C3%A9&MaxRecords=5&Empty=");
        assert_eq!(form.list("Names.member."), ["a/b c", "é"]);
        assert_eq!((form.number("MaxRecords"), form.text("Empty").as_deref()), (Some(5), Some("")));
        assert_eq!((form.text("Other"), form.list("Other.")), (None, Vec::new()));
    }
}
