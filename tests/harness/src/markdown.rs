//! Sections and code blocks of the documents.

/// The text under a heading, up to the next heading of the same level or above. `heading` includes its number signs.
#[must_use]
pub fn section<'a>(markdown: &'a str, heading: &str) -> Option<&'a str> {
    let start = markdown.find(&format!("\n{heading}\n"))?;
    let body = &markdown[start + heading.len() + 2..];
    let level = heading.len() - heading.trim_start_matches('#').len();
    let ends = |line: &str| line.starts_with('#') && line.len() - line.trim_start_matches('#').len() <= level;
    let end = body.lines().take_while(|line| !ends(line)).map(|line| line.len() + 1).sum::<usize>();
    Some(&body[..end.min(body.len())])
}

/// The code blocks of a language.
#[must_use]
pub fn blocks(markdown: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}");
    let mut found = Vec::new();
    let mut open = None::<Vec<&str>>;
    for line in markdown.lines() {
        open = match open {
            None => (line == opening).then(Vec::new),
            Some(lines) if line == "```" => {
                found.push(lines.join("\n"));
                None
            }
            Some(mut lines) => {
                lines.push(line);
                Some(lines)
            }
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Page\n\n## One\n\n```sh\na\nb\n```\n\n### Part\n\n```sh\nc\n```\n\n## Two\n\n```sh\nd\n```\n";

    #[test]
    fn a_section_ends_at_the_next_heading_of_its_level() {
        let one = section(PAGE, "## One").unwrap();
        assert_eq!(blocks(one, "sh"), ["a\nb", "c"]);
        assert_eq!(blocks(section(PAGE, "### Part").unwrap(), "sh"), ["c"]);
        assert_eq!(section(PAGE, "## Three"), None);
        assert!(blocks(PAGE, "toml").is_empty());
    }
}
