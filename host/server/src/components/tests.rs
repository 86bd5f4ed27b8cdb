//! What a node does with the files of components.

use std::fs::File;

use skep_vfs::sim::Crash;
use skep_vfs::{End, SimVfs, at_every_step};

use super::*;

#[test]
fn stored_bytes_come_back_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = ComponentStore::open(dir.path().join("components")).unwrap();
    let bytes = b"a component".as_slice();
    let id = ComponentId::of(bytes);
    assert_eq!(store.read(id).unwrap(), None);
    store.put(id, bytes).unwrap();
    store.put(id, bytes).unwrap();
    assert_eq!(store.read(id).unwrap().as_deref(), Some(bytes));
    let wrong = store.put(id, b"other bytes");
    assert!(matches!(wrong, Err(StoreError::Digest { expected, .. }) if expected == id));
    let files = std::fs::read_dir(dir.path().join("components"))
        .unwrap()
        .count();
    assert_eq!(files, 1, "no temporary file is left");
    assert_eq!(store.ids().unwrap(), [id].into());
    store.remove(id).unwrap();
    store.remove(id).unwrap();
    assert_eq!(store.read(id).unwrap(), None);
    assert_eq!(store.ids().unwrap(), [].into());
}

fn open_on(disk: &SimVfs) -> Result<ComponentStore, StoreError> {
    ComponentStore::open_on(Arc::new(disk.clone()), "/components".into())
}

#[test]
fn at_every_step_a_component_is_there_whole_or_not_at_all() {
    let bytes = vec![2; 1200];
    let id = ComponentId::of(&bytes);
    let put = |disk: &SimVfs| open_on(disk)?.put(id, &bytes);
    let disk = SimVfs::new(1);
    let path = open_on(&disk).unwrap().path(id);
    let damaged = disk.fork();
    damaged.plant(&path, vec![1; 1500]);
    for before in [disk, damaged] {
        let old = before.content(&path);
        at_every_step(&before, put, |disk, said, end| {
            let content = disk.content(&path);
            assert!(
                content == old || content.as_ref() == Some(&bytes),
                "{end:?}"
            );
            assert!(said.is_err() || content.as_ref() == Some(&bytes), "{end:?}");
            if end == End::CallFailed {
                let rest: Vec<_> = disk.files().into_iter().filter(|at| *at != path).collect();
                assert!(rest.is_empty(), "a failed call leaves {rest:?}");
            }
            put(disk).expect("nothing fails now");
            disk.crash(Crash::LoseAll);
            let store = open_on(disk).expect("nothing fails now");
            assert_eq!(store.read(id).unwrap().as_deref(), Some(&*bytes), "{end:?}");
            assert_eq!(disk.files(), std::slice::from_ref(&path), "{end:?}");
        });
    }
}

// P-37
#[test]
fn a_damaged_file_counts_as_absent_and_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let store = ComponentStore::open(dir.path().to_owned()).unwrap();
    let bytes = b"a component".as_slice();
    let id = ComponentId::of(bytes);
    store.put(id, bytes).unwrap();
    std::fs::write(store.path(id), b"a c").unwrap();
    assert_eq!(store.read(id).unwrap(), None);
    store.put(id, bytes).unwrap();
    assert_eq!(store.read(id).unwrap().as_deref(), Some(bytes));
}

#[test]
fn pieces_add_up_in_order_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = ComponentStore::open(dir.path().to_owned()).unwrap();
    let id = ComponentId::of(b"abcdef");
    let piece = |offset, data: &'static [u8]| Upload {
        id,
        offset,
        total: 6,
        data: data.into(),
    };
    assert_eq!(store.write(&piece(0, b"abcd")).unwrap(), (4, None));
    assert!(matches!(
        store.write(&piece(2, b"cd")),
        Err(StoreError::OutOfOrder {
            offset: 2,
            received: 4
        })
    ));
    assert_eq!(
        store.write(&piece(4, b"ef")).unwrap(),
        (6, Some(Bytes::from_static(b"abcdef")))
    );
    assert_eq!(
        store.write(&piece(0, b"zzz")).unwrap(),
        (3, None),
        "an upload can begin again"
    );
    assert!(matches!(
        store.write(&piece(3, b"zzz")),
        Err(StoreError::Digest { .. })
    ));
    assert_eq!(store.list().unwrap(), Vec::<PathBuf>::new());
    store.write(&piece(0, b"abcd")).unwrap();
    let again = ComponentStore::open(dir.path().to_owned()).unwrap();
    assert_eq!(
        again.list().unwrap(),
        Vec::<PathBuf>::new(),
        "what was not finished is removed"
    );
}

#[test]
fn abandoned_uploads_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = ComponentStore::open(dir.path().to_owned()).unwrap();
    let write = |n: usize| {
        let id = ComponentId::of(&n.to_le_bytes());
        store.write(&Upload {
            id,
            offset: 0,
            total: 6,
            data: "a".into(),
        })
    };
    for n in 0..UPLOADS_MAX {
        write(n).unwrap();
    }
    assert!(matches!(
        write(UPLOADS_MAX),
        Err(StoreError::TooManyUploads)
    ));
    write(0).unwrap();
}

/// As if nothing had come for so long.
fn age(path: &Path, by: Duration) {
    let file = File::options().write(true).open(path).unwrap();
    let then = file.metadata().unwrap().modified().unwrap() - by;
    file.set_modified(then).unwrap();
}

#[test]
fn uploads_that_do_not_go_on_give_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = ComponentStore::open(dir.path().to_owned()).unwrap();
    let id = |n: usize| ComponentId::of(&n.to_le_bytes());
    let part = |n| dir.path().join(format!("{}.{PARTIAL_SUFFIX}", id(n)));
    let write = |n: usize| {
        store.write(&Upload {
            id: id(n),
            offset: 0,
            total: 6,
            data: "a".into(),
        })
    };
    for n in 0..UPLOADS_MAX {
        write(n).unwrap();
    }
    // Others wait for its place.
    age(&part(3), ABANDONED_IF_FULL);
    write(UPLOADS_MAX).unwrap();
    assert!(!part(3).exists());
    assert!(matches!(write(3), Err(StoreError::TooManyUploads)));
    // Nobody does, and a minute is over.
    std::fs::remove_file(part(4)).unwrap();
    age(&part(5), ABANDONED - Duration::from_secs(1));
    age(&part(6), ABANDONED);
    write(7).unwrap();
    assert!(part(5).exists() && !part(6).exists());
}

#[test]
fn uploads_share_a_budget_of_bytes_and_the_disk_keeps_some_back() {
    let dir = tempfile::tempdir().unwrap();
    let room = |reserve| Arc::new(DiskRoom::open(dir.path(), reserve).unwrap());
    let open = |reserve| {
        let store = ComponentStore::open(dir.path().join("components")).unwrap();
        store.bounded(10, room(reserve))
    };
    let write = |store: &ComponentStore, name: &[u8], offset, data: &[u8]| {
        store.write(&Upload {
            id: ComponentId::of(name),
            offset,
            total: 100,
            data: Bytes::copy_from_slice(data),
        })
    };
    let store = open(0);
    write(&store, b"one", 0, b"123456").unwrap();
    write(&store, b"two", 0, b"1234").unwrap();
    for (name, offset) in [(b"one", 6), (b"two", 4), (b"new", 0)] {
        let refused = write(&store, name, offset, b"7").unwrap_err();
        assert!(
            matches!(
                refused,
                StoreError::NoRoom(NoRoom::Budget {
                    would: 11,
                    most: 10,
                    ..
                })
            ),
            "{refused}"
        );
    }
    // An upload that begins again has its own bytes back.
    write(&store, b"one", 0, b"12345").unwrap();
    write(&store, b"new", 0, b"7").unwrap();
    let short = open(u64::MAX / 2);
    let refused = write(&short, b"one", 0, b"1").unwrap_err();
    assert!(
        matches!(refused, StoreError::NoRoom(NoRoom::Disk { .. })),
        "{refused}"
    );
    let refused = short.put(ComponentId::of(b"whole"), b"whole").unwrap_err();
    assert!(
        matches!(refused, StoreError::NoRoom(NoRoom::Disk { .. })),
        "{refused}"
    );
}

#[test]
fn files_are_their_owners() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("components");
    let store = ComponentStore::open(home.clone()).unwrap();
    store.put(ComponentId::of(b"whole"), b"whole").unwrap();
    let piece = Upload {
        id: ComponentId::of(b"part"),
        offset: 0,
        total: 4,
        data: "pa".into(),
    };
    store.write(&piece).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home), 0o700);
    let files = store.list().unwrap();
    assert_eq!(files.len(), 2);
    for path in files {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert_eq!(store.bytes().unwrap(), 5);
}

#[test]
fn ranges_add_up_to_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = ComponentStore::open(dir.path().to_owned()).unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    let id = ComponentId::of(&bytes);
    store.put(id, &bytes).unwrap();
    let mut whole = Vec::new();
    while let Some((chunk, total)) = store.read_range(id, whole.len() as u64, 100).unwrap() {
        assert_eq!(total, 256);
        if chunk.is_empty() {
            break;
        }
        whole.extend_from_slice(&chunk);
    }
    assert_eq!(whole, bytes);
    assert_eq!(store.read_range(ComponentId::of(b"x"), 0, 1).unwrap(), None);
}
