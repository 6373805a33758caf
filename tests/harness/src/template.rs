//! Fills in `templates/`, as Terraform's `templatefile` does.

use crate::Failure;

/// Replaces each `${name}` with its value. A `$${` becomes `${`.
///
/// # Errors
/// The template has a name without a value, or a value has no place in the template.
pub fn fill(template: &str, values: &[(&str, &str)]) -> Result<String, Failure> {
    let mut filled = String::with_capacity(template.len());
    let mut used = vec![false; values.len()];
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            filled.push_str(before);
            filled.push_str("${");
            rest = after;
            continue;
        }
        let (name, after) =
            after.split_once('}').ok_or_else(|| Failure::new("the template has a ${ without its end"))?;
        let index = values.iter().position(|(known, _)| *known == name);
        let index = index.ok_or_else(|| Failure::new(format!("there is no value for ${{{name}}}")))?;
        used[index] = true;
        filled.push_str(before);
        filled.push_str(values[index].1);
        rest = after;
    }
    filled.push_str(rest);
    match used.iter().position(|used| !used) {
        Some(index) => Err(Failure::new(format!("the template has no ${{{}}}", values[index].0))),
        None => Ok(filled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_every_value_has_its_counterpart() {
        assert_eq!(fill("a=${a} b=${b} ${a} $${c}", &[("a", "1"), ("b", "${x}")]).unwrap(), "a=1 b=${x} 1 ${c}");
        assert!(fill("${a}", &[]).unwrap_err().to_string().contains("${a}"));
        assert!(fill("", &[("a", "1")]).unwrap_err().to_string().contains("${a}"));
        assert!(fill("${a", &[("a", "1")]).is_err());
    }
}
