//! A look at what a session has left, as `tailwater verify` takes it: with the catalog, and without it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::session::rows;
use super::{Cores, Scenario, TURNS_MAX};
use crate::error::Result;
use crate::log::Space;
use crate::runtime::Core;
use crate::store::finding::Finding;
use crate::store::offline::Offline;
use crate::store::verify::verify_open;
use crate::store::{Database, State};

/// Verifies what is there. Nothing is changed.
pub(super) fn inspect(scenario: &Scenario) -> std::result::Result<(), String> {
    let with = look(scenario, scenario.files.view().map_err(|error| error.to_string())?)?;
    let without = look(scenario, None)?;
    if with != without {
        // What was never acknowledged may be there or not: a torn write of what was deleted since is one to the catalog,
        // and may have counted to who has none.
        let check = |rows| scenario.model.borrow().clone().compare(rows);
        check(&with).and_then(|()| check(&without)).map_err(|violation| {
            format!("with the catalog there is {with:?}, and without it {without:?}: {violation}")
        })?;
    }
    scenario.model.borrow_mut().tally.verified += 1;
    Ok(())
}

type Rows = Vec<(String, u64, State, u64)>;

fn look(scenario: &Scenario, database: Option<Database>) -> std::result::Result<Rows, String> {
    let how = if database.is_some() { "with the catalog" } else { "without the catalog" };
    match verified(scenario, database) {
        None => Err(format!("who verifies {how} waits for ever")),
        Some(Err(error)) => Err(format!("who verifies {how} is answered {error}")),
        Some(Ok(found)) if !found.findings.is_empty() => {
            Err(format!("who verifies {how} finds {:?}", found.findings))
        }
        Some(Ok(found)) => Ok(found.rows),
    }
}

/// What somebody has found who looked at everything.
pub(super) struct Found {
    pub findings: Vec<Finding>,
    pub rows: Rows,
    /// Generation, segment, position and length of every run of bytes.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests damage them"))]
    pub places: Vec<(u64, u64, u64, u32)>,
}

/// Has everything verified. None: that does not come to an end.
pub(super) fn verified(scenario: &Scenario, database: Option<Database>) -> Option<Result<Found>> {
    let outcome = Rc::new(RefCell::new(None));
    let mut cores = Cores::new(&scenario.world, 1);
    let (space, answer) = (scenario.space(), outcome.clone());
    cores.begin(0, |core| async move {
        let verified = verify(&core, space, database).await;
        *answer.borrow_mut() = Some(verified);
    });
    cores.run(TURNS_MAX);
    drop(cores);
    outcome.take()
}

async fn verify(core: &Rc<Core>, space: Arc<Space>, database: Option<Database>) -> Result<Found> {
    let store = Offline::over(core, space, database).await?;
    let report = verify_open(core, &store, &mut |_, _| {}).await?;
    let mut places = Vec::new();
    store.lookup()?.each_extent(|generation, extent| {
        places.push((generation, extent.segment, extent.position, extent.length));
    })?;
    let mut findings = report.findings;
    findings.extend(shared_places(&places).into_iter().map(Finding::new));
    Ok(Found { findings, rows: rows(store.database())?, places })
}

/// Places that belong to two objects.
fn shared_places(places: &[(u64, u64, u64, u32)]) -> Vec<String> {
    let mut places: Vec<_> =
        places.iter().map(|place| (place.1, place.2, place.2 + u64::from(place.3), place.0)).collect();
    places.sort_unstable();
    let shared = places.windows(2).filter(|two| two[0].0 == two[1].0 && two[0].2 > two[1].1);
    shared
        .map(|two| {
            format!("{} and {} share position {} of segment {}", two[0].3, two[1].3, two[1].1, two[0].0)
        })
        .collect()
}
