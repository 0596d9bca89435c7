//! Room that comes back: parts of segments in which nothing is alive.

use std::rc::Rc;

use super::catalog::Dead;
use super::local::LocalStore;
use crate::log::Space;
use crate::log::format::ALIGNMENT;
use crate::ring::OpenMode;
use crate::runtime::Receiver;

/// Gives dead parts of segments back to the file system, until nobody can name any more. What is not given back here,
/// such as after a crash, comes back with the whole segment.
pub(super) async fn give_back(local: Rc<LocalStore>, mut dead: Receiver<Vec<Dead>>) {
    while let Some(parts) = dead.receive().await {
        for part in parts {
            let number = part.segment.number();
            if let Err(errno) = punch(&local, &part).await {
                tracing::debug!(segment = number, %errno, "room in a segment could not be given back");
            }
        }
    }
}

async fn punch(local: &LocalStore, dead: &Dead) -> Result<(), rustix::io::Errno> {
    let alignment = ALIGNMENT as u64;
    let mut file = None;
    for &(position, length) in &dead.ranges {
        let (start, end) =
            (position.next_multiple_of(alignment), (position + length) / alignment * alignment);
        if start >= end {
            continue;
        }
        let file = match &file {
            Some(file) => file,
            None => {
                let path = Space::path(local.segment_folder(), dead.segment.number());
                file.insert(local.core().open(&path, OpenMode::WriteBuffered).await?)
            }
        };
        local.core().punch(file, start, end - start).await?;
        local.metrics().punched_bytes.add(end - start);
    }
    Ok(())
}
