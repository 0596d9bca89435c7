//! `tailwater ls`: the buckets of a server, or the objects of a bucket, page by page.

use std::io::Write;

use super::failure::{ExitStatus, Failure};
use super::remote::{failure, failure_of};
use crate::client::{self, Client, Error, Limits, Location, Request};

/// List the buckets of a server, or the objects of a bucket
///
/// Each line has the size in bytes, the state (live, sealed or interrupted), the time of the last change and the
/// key; keys that --delimiter folds together are shown once, without the rest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tailwater ls http://127.0.0.1:8420
  tailwater ls http://127.0.0.1:8420/cam/2026/ --delimiter /")]
pub struct Arguments {
    /// What to list: http://host:port, http://host:port/bucket or http://host:port/bucket/prefix
    #[arg(value_name = "URL")]
    url: String,
    /// Fold the keys that have the same text up to this, behind the prefix
    #[arg(long, value_name = "TEXT")]
    delimiter: Option<String>,
    /// Print one JSON object per line, as the server gave it
    #[arg(long)]
    json: bool,
}

/// A page of the objects of a bucket.
#[derive(serde::Deserialize)]
struct Page {
    objects: Vec<serde_json::Value>,
    #[serde(default)]
    prefixes: Vec<String>,
    next: Option<String>,
}

/// The buckets of a server.
#[derive(serde::Deserialize)]
struct Buckets {
    buckets: Vec<serde_json::Value>,
}

/// Runs the command.
///
/// # Errors
/// If the list is not whole. A reader of standard output that goes away is no failure.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let location = Location::parse(&arguments.url).map_err(|error| failure(&error))?;
    let listed = client::run(16, list(&location, &arguments)).map_err(|error| failure(&error))?;
    match listed {
        Ok(()) => Ok(()),
        Err(End::Remote(error)) => Err(failure_of(&location, &error)),
        Err(End::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(End::Output(error)) => {
            Err(Failure::new(ExitStatus::Failed, format!("cannot write standard output: {error}")))
        }
    }
}

/// Why the list ends before its end.
enum End {
    Remote(Error),
    Output(std::io::Error),
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        End::Remote(error)
    }
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> End {
        End::Output(error)
    }
}

async fn list(location: &Location, arguments: &Arguments) -> Result<(), End> {
    let client = Client::new(location, Limits::default())?;
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    if location.bucket.is_empty() {
        let request = Request::new("GET", location.listing_target(&[]));
        let buckets: Buckets = client.request(&request).await?.accepted().await?.json().await?;
        for bucket in buckets.buckets {
            let line = if arguments.json { bucket.to_string() } else { text(&bucket) };
            writeln!(output, "{line}")?;
        }
        return Ok(output.flush()?);
    }
    let mut after: Option<String> = None;
    loop {
        let mut parameters = vec![("prefix", location.key.as_str())];
        parameters.extend(arguments.delimiter.as_deref().map(|delimiter| ("delimiter", delimiter)));
        parameters.extend(after.as_deref().map(|after| ("after", after)));
        let request = Request::new("GET", location.listing_target(&parameters));
        let page: Page = client.request(&request).await?.accepted().await?.json().await?;
        for line in lines(&page, arguments.json) {
            writeln!(output, "{line}")?;
        }
        output.flush()?;
        match page.next {
            // A page that leads nowhere would be asked for again and again.
            Some(next) if after.as_ref() >= Some(&next) => {
                return Err(Error::Malformed(format!("the page behind {next:?} leads back to it")).into());
            }
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

/// The lines of a page, keys and folded prefixes in one order.
fn lines(page: &Page, json: bool) -> Vec<String> {
    let objects = page.objects.iter().map(|object| {
        let key = text(&object["key"]);
        let line = if json {
            object.to_string()
        } else {
            let (length, state) = (text(&object["length"]), text(&object["state"]));
            format!("{length:>14}  {state:<11}  {:<29}  {key}", text(&object["modified"]))
        };
        (key, line)
    });
    let prefixes = page.prefixes.iter().map(|prefix| {
        let line = if json {
            serde_json::json!({ "prefix": prefix }).to_string()
        } else {
            format!("{:>14}  {:<11}  {:<29}  {prefix}", "", "prefix", "")
        };
        (prefix.clone(), line)
    });
    let mut items: Vec<(String, String)> = objects.chain(prefixes).collect();
    items.sort();
    items.into_iter().map(|(_, line)| line).collect()
}

/// A JSON value as people read it.
fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_prefixes_are_in_one_order() {
        let page: Page = serde_json::from_str(
            r#"{"bucket": "b", "objects": [
                {"key": "a", "state": "sealed", "length": 10, "modified": "2026-11-22T02:00:00Z"},
                {"key": "c", "state": "live", "length": null}
            ], "prefixes": ["b/"], "next": "c"}"#,
        )
        .unwrap();
        let shown = lines(&page, false);
        let keys: Vec<&str> = shown.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(keys, ["a", "b/", "c"]);
        assert!(shown[0].contains("10  sealed") && shown[0].contains("2026-11-22T02:00:00Z"));
        assert!(shown[2].contains("-  live"));
        assert_eq!(lines(&page, true)[1], r#"{"prefix":"b/"}"#);
    }
}
