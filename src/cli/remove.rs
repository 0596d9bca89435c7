//! `tailwater rm`: removes objects.

use std::io::Write;

use super::failure::Failure;
use super::remote::{failure, failure_of, object};
use crate::client::{self, Client, Limits, Location, Request};

/// Remove objects
///
/// Who is reading one keeps what they hold. All that are named are tried; the exit code is that of the first that
/// failed.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to remove: http://host:port/bucket/key
    #[arg(value_name = "URL", required = true)]
    urls: Vec<String>,
    /// It is no failure if an object is not there
    #[arg(short, long)]
    force: bool,
}

/// Runs the command.
///
/// # Errors
/// The first failure; those that follow are told on standard error.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let locations: Vec<Location> = arguments.urls.iter().map(|url| object(url)).collect::<Result<_, _>>()?;
    client::run(16, remove_all(&locations, arguments.force)).map_err(|error| failure(&error))?
}

async fn remove_all(locations: &[Location], force: bool) -> Result<(), Failure> {
    let mut first: Option<Failure> = None;
    let mut client: Option<(String, Client)> = None;
    for location in locations {
        let Err(error) = remove(location, &mut client).await else { continue };
        if force && error.status() == Some(404) {
            continue;
        }
        let failed = failure_of(location, &error);
        if first.is_none() {
            first = Some(failed);
        } else {
            // With standard error gone there is still the exit code.
            let _ = writeln!(std::io::stderr(), "tailwater: {failed}");
        }
    }
    first.map_or(Ok(()), Err)
}

/// Removes one, over the connection to its server if there is one.
async fn remove(location: &Location, client: &mut Option<(String, Client)>) -> client::Result<()> {
    let authority = location.authority();
    let client = match client {
        Some((known, client)) if *known == authority => client,
        other => &mut other.insert((authority, Client::new(location, Limits::default())?)).1,
    };
    client.request(&Request::new("DELETE", location.target())).await?.accepted().await?.bytes().await?;
    Ok(())
}
