//! A look at what a session has left, as `tailwater verify` takes it: with the catalog, and without it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::session::rows;
use super::{Cores, Pause, Scenario, TURNS_MAX};
use crate::error::Result;
use crate::runtime::Core;
use crate::store::Database;
use crate::store::offline::Offline;
use crate::store::verify::verify_open;

/// Verifies what is there. Nothing is changed.
pub(super) fn inspect(scenario: &Scenario) -> std::result::Result<(), String> {
    let with = look(scenario, scenario.files.view().map_err(|error| error.to_string())?)?;
    let without = look(scenario, None)?;
    if with != without {
        return Err(format!("with the catalog there is {with:?}, and without it {without:?}"));
    }
    scenario.model.borrow_mut().tally.verified += 1;
    Ok(())
}

type Rows = Vec<(String, u64, crate::store::State, u64)>;

fn look(scenario: &Scenario, database: Option<Database>) -> std::result::Result<Rows, String> {
    let how = if database.is_some() { "with the catalog" } else { "without the catalog" };
    let outcome = Rc::new(RefCell::new(None));
    let mut cores = Cores::new(&scenario.world, 1);
    let (space, answer) = (scenario.space(), outcome.clone());
    cores.begin(0, |core| async move {
        let verified = verify(&core, space, database).await;
        *answer.borrow_mut() = Some(verified);
    });
    let pause = cores.run(TURNS_MAX);
    drop(cores);
    let outcome = outcome.borrow_mut().take();
    match outcome {
        _ if pause != Pause::Ended => Err(format!("who verifies {how} waits for ever")),
        None => Err(format!("nobody has verified {how}")),
        Some(Err(error)) => Err(format!("who verifies {how} is answered {error}")),
        Some(Ok((findings, _))) if !findings.is_empty() => {
            Err(format!("who verifies {how} finds {findings:?}"))
        }
        Some(Ok((_, rows))) => Ok(rows),
    }
}

async fn verify(
    core: &Rc<Core>,
    space: std::sync::Arc<crate::log::Space>,
    database: Option<Database>,
) -> Result<(Vec<String>, Rows)> {
    let store = Offline::over(core, space, database).await?;
    let report = verify_open(core, &store, &mut |_, _| {}).await?;
    let mut findings: Vec<String> = report.findings.iter().map(|finding| format!("{finding:?}")).collect();
    findings.extend(shared_places(&store)?);
    Ok((findings, rows(store.database())?))
}

/// Places that belong to two objects.
fn shared_places(store: &Offline) -> Result<Vec<String>> {
    let mut places: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
    let mut shared = Vec::new();
    store.lookup()?.each_extent(|generation, extent| {
        let end = extent.position + u64::from(extent.length);
        if let Some((_, other)) = places.insert((extent.segment, extent.position), (end, generation)) {
            shared.push(format!(
                "{generation} and {other} share position {} of segment {}",
                extent.position, extent.segment
            ));
        }
    })?;
    let mut former = (0, 0, 0);
    for ((segment, position), (end, generation)) in places {
        if former.0 == segment && former.1 > position {
            shared.push(format!(
                "{} and {generation} share position {position} of segment {segment}",
                former.2
            ));
        }
        former = (segment, end, generation);
    }
    Ok(shared)
}
