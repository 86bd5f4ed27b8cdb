//! No web page may use a node through the browser of somebody who can reach it: by a request to another site, or by a name
//! of its own that leads here.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use skep_types::code::Code;

use super::front::Front;
use super::problem::Problem;
use crate::config::{Config, HttpSection, is_loopback};

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Lets a request pass, or refuses it.
pub(super) async fn check<F: Front>(
    State(front): State<F>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let settings = front.doors().settings();
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let named = named(uri, headers)?;
    if let Some(named) = &named {
        is_ours(named, front.config(), &settings)?;
    }
    is_no_other_page(method, headers, named.as_deref(), &settings)?;
    Ok(next.run(request).await)
}

/// Whom the request names, if it does.
fn named(uri: &Uri, headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(header::HOST).iter();
    let first = given.next();
    if given.next().is_some() {
        let detail = "the request has more than one Host; send one";
        return Err(Problem::of(Code::InvalidRequest, detail));
    }
    let first = first.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    Ok(uri.authority().map(ToString::to_string).or(first))
}

/// A name that leads here although nobody here gave it may be that of a page.
fn is_ours(named: &str, config: &Config, settings: &HttpSection) -> Result<(), Problem> {
    if settings.hosts.is_empty() && !is_loopback(config.listen_http()) {
        return Ok(());
    }
    let name = &host_of(named).to_ascii_lowercase();
    let ours = [&config.own().http, config.listen_http()];
    let is_known = is_loopback(&format!("{name}:1"))
        || ours.iter().any(|own| same(host_of(own), name))
        || settings
            .hosts
            .iter()
            .any(|known| same(known, name) || same(known, named));
    if is_known {
        return Ok(());
    }
    let detail = format!(
        "this node is not `{}`; ask it at {}, or name the host in [http] hosts",
        name.chars().take(256).collect::<String>(),
        config.own().http
    );
    Err(Problem::of(Code::WrongHost, detail))
}

/// Browsers say where a request comes from; other programs say nothing.
fn is_no_other_page(
    method: &Method,
    headers: &HeaderMap,
    named: Option<&str>,
    settings: &HttpSection,
) -> Result<(), Problem> {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let refused = |from: &str| {
        let from: String = from.chars().take(256).collect();
        let detail = format!(
            "a web page of another origin (`{from}`) may not use this node; name the origin in [http] origins"
        );
        Problem::of(Code::CrossOrigin, detail)
    };
    if let Some(origin) = text(&header::ORIGIN) {
        let own = origin.split_once("://").map(|(_, host)| host);
        let is_allowed = settings.origins.iter().any(|known| same(known, origin))
            || own.is_some() && own.zip(named).is_some_and(|(own, named)| same(own, named));
        return match is_allowed {
            true => Ok(()),
            false => Err(refused(origin)),
        };
    }
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match text(&SITE) {
        None | Some("same-origin" | "none") => Ok(()),
        // Whoever follows a link sees what is here; the page that has the link does not.
        Some("cross-site") if reads && text(&MODE) == Some("navigate") => Ok(()),
        Some("same-site") if reads => Ok(()),
        Some(site) => Err(refused(site)),
    }
}

/// The host of `host:port`, which may be an address in brackets.
fn host_of(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => address,
    }
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('.')
        .eq_ignore_ascii_case(other.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(http: &str, environment: &[(&str, &str)]) -> Config {
        let text = include_str!("../../../skep.example.toml").replace("127.0.0.1:7501", http);
        let environment = environment
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Config::parse(&text, Path::new("skep.toml"), environment).expect("a configuration")
    }

    fn host_status(named: &str, config: &Config) -> u16 {
        is_ours(named, config, &config.http).map_or_else(|problem| problem.status, |()| 200)
    }

    #[test]
    fn on_the_loopback_only_names_of_the_loopback_are_ours() {
        let config = config("127.0.0.1:7501", &[]);
        for (named, status) in [
            ("127.0.0.1:7501", 200),
            ("127.0.0.1", 200),
            ("127.0.0.9:80", 200),
            ("localhost:7501", 200),
            ("LOCALHOST", 200),
            ("[::1]:7501", 200),
            ("evil.example:7501", 421),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example:7501", 421),
            ("", 421),
        ] {
            assert_eq!(host_status(named, &config), status, "{named}");
        }
    }

    #[test]
    fn elsewhere_names_count_only_where_some_are_given() {
        let open = [("SKEP_LISTEN__INSECURE_PLAINTEXT", "true")];
        let config_open = config("10.0.0.1:7501", &open);
        assert_eq!(host_status("anything", &config_open), 200);
        let mut named = config_open;
        named.http.hosts = vec!["skep.example".to_owned()];
        for (host, status) in [
            ("skep.example", 200),
            ("Skep.Example:7501", 200),
            ("10.0.0.1:7501", 200),
            ("localhost", 200),
            ("evil.example", 421),
        ] {
            assert_eq!(host_status(host, &named), status, "{host}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        let settings = HttpSection {
            origins: vec!["https://console.example".to_owned()],
            ..HttpSection::default()
        };
        let here = "127.0.0.1:7501";
        for (method, pairs, status) in [
            (Method::POST, &[][..], 200),
            (Method::POST, &[("origin", "http://evil.example")], 403),
            (Method::GET, &[("origin", "http://evil.example")], 403),
            (Method::POST, &[("origin", "null")], 403),
            (Method::POST, &[("origin", "http://127.0.0.1:7501")], 200),
            (Method::POST, &[("origin", "http://127.0.0.1:3000")], 403),
            (Method::POST, &[("origin", "https://console.example")], 200),
            (Method::POST, &[("sec-fetch-site", "cross-site")], 403),
            (Method::POST, &[("sec-fetch-site", "same-site")], 403),
            (Method::POST, &[("sec-fetch-site", "same-origin")], 200),
            (Method::GET, &[("sec-fetch-site", "none")], 200),
            (Method::GET, &[("sec-fetch-site", "cross-site")], 403),
            (
                Method::GET,
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                200,
            ),
            (
                Method::POST,
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                403,
            ),
        ] {
            let headers: HeaderMap = pairs
                .iter()
                .map(|(name, value)| {
                    let name: HeaderName = name.parse().expect("a name");
                    (name, value.parse().expect("a value"))
                })
                .collect();
            let checked = is_no_other_page(&method, &headers, Some(here), &settings);
            let seen = checked.map_or_else(|problem| problem.status, |()| 200);
            assert_eq!(seen, status, "{method} {pairs:?}");
        }
    }
}
