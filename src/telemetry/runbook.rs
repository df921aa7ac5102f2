//! The runbook, which a running walsweep can show: at three in the morning it is where the page is.

/// Its text, Markdown.
const TEXT: &str = include_str!("../../docs/runbook.md");

/// A section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    /// The anchor that its heading has on the web.
    pub(super) anchor: String,
    heading: &'a str,
    body: &'a str,
}

/// The sections, in their order.
pub(super) fn sections() -> impl Iterator<Item = Section<'static>> {
    TEXT.split("\n## ").skip(1).map(|section| {
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let kept = heading.chars().filter(|one| one.is_alphanumeric() || " -_".contains(*one));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        Section { anchor, heading, body }
    })
}

/// The parts of a page of it: for each section a heading with its anchor, and its text as it is.
pub(super) fn parts() -> String {
    let mut html = String::with_capacity(TEXT.len() * 5 / 4);
    for Section { anchor, heading, body } in sections() {
        let (heading, body) = (escaped(heading), escaped(body.trim()));
        html.push_str(&format!("<h2 id=\"{anchor}\">{heading}</h2>\n<pre>{body}</pre>\n"));
    }
    html
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{parts, sections};

    #[test]
    fn the_page_of_the_runbook_has_each_section_and_no_markup_of_its_text() {
        let html = parts();
        let anchors: Vec<String> = sections().map(|section| section.anchor).collect();
        assert!(
            anchors.len() > 10 && anchors.contains(&"healthz-is-503".to_owned()),
            "{anchors:?}"
        );
        for anchor in anchors {
            assert!(html.contains(&format!("<h2 id=\"{anchor}\">")), "{anchor}");
        }
        let tags: Vec<&str> = html.split('<').skip(1).collect();
        let known = ["h2 id=", "/h2>", "pre>", "/pre>"];
        let strange = tags.iter().find(|tag| !known.iter().any(|known| tag.starts_with(known)));
        assert_eq!(strange, None);
    }
}
