//! The page for people, sent as one file: it asks for nothing else than `/events` and `/status`.
//!
//! Names and keys come into it as texts only (`textContent`): none of them is ever read as markup.
//! Its policy lets a browser run and apply nothing but what this file has.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::runbook;

/// A page, with what its browser may do.
#[derive(Debug)]
pub(super) struct Page {
    /// The document.
    pub(super) html: String,
    /// The value of `Content-Security-Policy`.
    pub(super) policy: String,
}

impl Page {
    fn new(html: String) -> Page {
        let policy = policy(&html);
        Page { html, policy }
    }
}

/// The live page.
pub(super) fn index() -> &'static Page {
    static INDEX: LazyLock<Page> = LazyLock::new(|| {
        let parts = [
            ("/* page.css */", include_str!("page.css")),
            ("/* words.js */", include_str!("words.js")),
            ("/* page.js */", include_str!("page.js")),
        ];
        let whole = include_str!("index.html").to_owned();
        Page::new(parts.into_iter().fold(whole, |html, (name, part)| html.replace(name, part)))
    });
    &INDEX
}

/// The runbook.
pub(super) fn runbook() -> &'static Page {
    static RUNBOOK: LazyLock<Page> = LazyLock::new(|| {
        Page::new(include_str!("runbook.html").replace("<!-- sections -->", &runbook::parts()))
    });
    &RUNBOOK
}

/// Lets the document's own styles and scripts work, by what they are, and nothing else
/// (<https://www.w3.org/TR/CSP3/#external-hash>).
fn policy(html: &str) -> String {
    let hashes = |element: &str| {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let parts = html.split(open.as_str()).skip(1);
        let texts = parts.filter_map(|part| part.split(close.as_str()).next());
        let hashes: Vec<String> = texts
            .map(|text| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text))))
            .collect();
        if hashes.is_empty() { "'none'".to_owned() } else { hashes.join(" ") }
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hashes("script"),
        hashes("style")
    )
}

#[cfg(test)]
mod tests {
    use super::{index, policy, runbook};

    #[test]
    fn a_policy_names_the_scripts_and_styles_of_its_document_alone() {
        // echo -n 'a' | openssl dgst -sha256 -binary | base64
        let hash = "'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='";
        let of_script = policy("<p>b</p><script>a</script>");
        assert!(of_script.contains(&format!("script-src {hash}; style-src 'none'")), "{of_script}");
        for page in [index(), runbook()] {
            assert!(page.policy.starts_with("default-src 'none';"), "{}", page.policy);
            assert!(!page.policy.contains("unsafe"), "{}", page.policy);
        }
    }

    /// Names from elsewhere are never markup, and nothing is asked of anybody else.
    #[test]
    fn the_pages_ask_for_nothing_outside_and_make_no_markup_of_texts() {
        let markup = ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("];
        let outside = ["http://", "https://", "//cdn", " src=", "@import", "url("];
        let handlers = [" onclick=", " onload=", " style=\"", "javascript:"];
        let html = index().html.replace("http://www.w3.org/2000/svg", "");
        for part in markup.into_iter().chain(outside).chain(handlers) {
            assert!(!html.contains(part), "{part}");
        }
        assert!(index().html.contains("textContent") && !index().html.contains(".js */"));
        // The runbook has addresses in its texts.
        for part in
            handlers.into_iter().chain([" src=", "href=\"http", "@import", "url(", "<script"])
        {
            assert!(!runbook().html.contains(part), "{part}");
        }
    }
}
