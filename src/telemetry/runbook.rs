//! The runbook, which a running walsweep can show: at three in the morning it is where the page is.
//!
//! Its text comes from this repository alone. Yet nothing in it is taken as markup but what
//! Markdown has: HTML in it is shown as it is written, and a link leads to a section of the page,
//! or is a text that names the file.

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};

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

/// The parts of a page of it: what stands before the sections, then each with its anchor.
pub(super) fn parts() -> String {
    let before = TEXT.split("\n## ").next().unwrap_or_default();
    let mut html = markdown(before, "");
    for Section { anchor, heading, body } in sections() {
        html.push_str(&markdown(&format!("## {heading}\n{body}"), &anchor));
    }
    html
}

/// Gives HTML for a text in Markdown, its heading with this anchor.
fn markdown(text: &str, anchor: &str) -> String {
    let mut html = String::with_capacity(text.len() * 3 / 2);
    let mut open = Vec::new();
    let parser = Parser::new_ext(text, Options::ENABLE_TABLES);
    html::push_html(&mut html, parser.flat_map(|event| shown(event, anchor, &mut open)));
    html
}

/// The events that take the place of one. The links that are `open` are kept, each with the file
/// that is named in its place.
fn shown<'a>(event: Event<'a>, anchor: &str, open: &mut Vec<Option<CowStr<'a>>>) -> Vec<Event<'a>> {
    match event {
        Event::Start(Tag::Heading { level, .. }) if !anchor.is_empty() => {
            let id = Some(CowStr::from(anchor.to_owned()));
            let (classes, attrs) = (Vec::new(), Vec::new());
            vec![Event::Start(Tag::Heading { level, id, classes, attrs })]
        }
        Event::Start(Tag::Link { ref dest_url, .. }) if dest_url.starts_with('#') => {
            open.push(None);
            vec![event]
        }
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            open.push(Some(dest_url));
            Vec::new()
        }
        Event::End(TagEnd::Link | TagEnd::Image) => match open.pop().flatten() {
            Some(file) => {
                let (before, after) = (" (".into(), ")".into());
                vec![Event::Text(before), Event::Code(path(&file).into()), Event::Text(after)]
            }
            None => vec![Event::End(TagEnd::Link)],
        },
        // It may be wider than a phone. How it is aligned would be a style in the document, which
        // the policy of the page forbids.
        Event::Start(Tag::Table(_)) => {
            vec![Event::Html("<div>".into()), Event::Start(Tag::Table(Vec::new()))]
        }
        Event::End(TagEnd::Table) => vec![event, Event::Html("</div>\n".into())],
        Event::Html(text) | Event::InlineHtml(text) => vec![Event::Text(text)],
        _ => vec![event],
    }
}

/// Where a file of the repository is that the runbook, in `docs`, names.
fn path(file: &str) -> String {
    match file.strip_prefix("../") {
        Some(outside) => outside.to_owned(),
        None if file.contains(':') => file.to_owned(),
        None => format!("docs/{file}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{markdown, parts, sections};

    /// All that stands between `before` and `after`.
    fn each<'a>(html: &'a str, before: &str, after: char) -> Vec<&'a str> {
        html.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
    }

    #[test]
    fn the_page_of_the_runbook_has_each_section_and_no_sign_of_markdown() {
        let html = parts();
        let anchors: Vec<String> = sections().map(|section| section.anchor).collect();
        assert!(
            anchors.len() > 10 && anchors.contains(&"healthz-is-503".to_owned()),
            "{anchors:?}"
        );
        assert_eq!(each(&html, "<h2 id=\"", '"'), anchors);
        assert!(html.contains("<h2 id=\"healthz-is-503\"><code>/healthz</code> is 503</h2>"));
        let text =
            html.split("<pre>").map(|part| part.split_once("</pre>").unwrap_or(("", part)).1);
        for sign in ["](", "**", "```", "\n| ", "| ---", "\n- ", "\n1. "] {
            assert!(text.clone().all(|part| !part.contains(sign)), "{sign}");
        }
    }

    #[test]
    fn its_links_lead_to_sections_of_the_page_and_files_are_named() {
        let html = parts();
        let anchors: BTreeSet<String> = sections().map(|section| section.anchor).collect();
        let links = each(&html, "href=\"", '"');
        assert!(links.len() > 20, "{links:?}");
        for link in links {
            assert!(link.strip_prefix('#').is_some_and(|one| anchors.contains(one)), "{link}");
        }
        assert!(html.contains("(<code>docs/lease.md</code>)"));
        assert!(html.contains("(<code>packaging/prometheus/walsweep.rules.yml</code>)"));
    }

    #[test]
    fn it_has_the_markup_of_markdown_and_no_other() {
        let html = parts();
        let tags: BTreeSet<&str> =
            html.split('<').skip(1).filter_map(|tag| tag.split(['>', ' ']).next()).collect();
        let known =
            "a blockquote code div em h1 h2 li ol p pre strong table tbody td th thead tr ul";
        let known: BTreeSet<&str> = known.split(' ').collect();
        let strange = tags.iter().find(|tag| !known.contains(tag.strip_prefix('/').unwrap_or(tag)));
        assert_eq!(strange, None);
        assert!(!html.contains(" style=") && !html.contains(" src="));
        let text = "a <b onclick=x>b</b> `<i>` [c](javascript:d) ![e](https://f/g.png)\n\n\
                    <script>\nh\n</script>\n\n| t |\n| :-- |\n| <u> |\n";
        let html = markdown(text, "x");
        for part in ["<b", "<i", "<script", "<u", "<img", "href", "src=", "style="] {
            assert!(!html.contains(part), "{part}: {html}");
        }
        assert!(html.contains("&lt;script&gt;\nh"), "{html}");
    }
}
