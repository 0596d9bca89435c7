//! The disk fails that the catalog is on, and only that one: nothing that was acknowledged depends on it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Disk, FileSystem, Server, content, eventually};

#[test]
fn a_catalog_that_cannot_be_written_holds_up_nobody_and_is_named() {
    let Some(mut disk) = Disk::new(FileSystem::Ext4, 64 << 20) else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = folder.path().join("data");
    let mut server = Server::start_small_at(&data, &[], &[]);
    let bytes = |number: u64| content(number, 300_000);
    server.put("/b/before", &bytes(0));
    assert!(server.terminate().success());
    let (usual, elsewhere) = (data.join("catalog"), disk.path().join("catalog"));
    std::fs::copy(&usual, &elsewhere).unwrap();
    std::fs::remove_file(&usual).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &usual).unwrap();
    server.restart();
    assert_eq!((server.admin("/readyz").0, server.metric("tailwater_catalog_failing")), (200, 0));

    disk.switch().cut();
    let mut count = 0;
    eventually("the catalog has been told something", || {
        count += 1;
        server.put(&format!("/b/{count}"), &bytes(count));
        server.admin("/readyz").0 == 503
    });
    let (_, why) = server.admin("/readyz");
    assert!(why.starts_with("the catalog cannot be written: "), "{why}");
    assert_eq!((server.metric("tailwater_catalog_failing"), server.metric("tailwater_logs_failed")), (1, 0));
    let log = server.log_since_start();
    assert_eq!(
        log.matches("the catalog cannot be written; it is tried again every second").count(),
        1,
        "{log}"
    );
    // Writers and their followers go on, and everything that they have left can be read.
    let mut live = server.begin_put("/b/live", None, &[]);
    let mut follower = server.follow("/b/live");
    live.send(b"what is given is kept");
    follower.expect(b"what is given is kept");
    (1..=count).for_each(|number| server.assert_sealed(&format!("/b/{number}"), &bytes(number)));
    // A stop does not wait for a disk that is gone.
    drop((live, follower));
    assert!(server.terminate().success());

    disk.unmount();
    disk.mount();
    server.restart();
    assert_eq!((server.admin("/readyz").0, server.metric("tailwater_catalog_failing")), (200, 0));
    server.assert_sealed("/b/before", &bytes(0));
    (1..=count).for_each(|number| server.assert_sealed(&format!("/b/{number}"), &bytes(number)));
    assert_eq!(server.get("/b/live").body, b"what is given is kept");
    server.assert_undamaged();
    server.assert_verified_when_stopped();
}
