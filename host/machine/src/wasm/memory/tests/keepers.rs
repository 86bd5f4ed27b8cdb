//! A memory that is gone back to is what it was.

use super::*;

impl Guest {
    /// What it is now can be gone back to, until more than so many blocks are written.
    fn keep(&mut self, most: usize) -> Keeper {
        self.capture().keeper(most)
    }

    /// Another instance, which goes on from there.
    fn back(engine: &Engine, to: &Keeper, pages: u32) -> Self {
        let mut guest = Self::start(engine);
        guest.memory.take_over(to).unwrap();
        let has = guest.memory.bytes() as u32 / PAGE;
        assert_eq!(guest.grow(0), Ok(has as i32), "{NOT_TOLD}");
        assert_eq!(guest.grow(pages - has), Ok(has as i32));
        guest
    }

    fn bytes(&self) -> Vec<u8> {
        self.memory.read(<[u8]>::to_vec)
    }
}

#[test]
fn who_goes_back_finds_the_memory_as_it_was_and_zeroes_beyond() {
    // In the compact layout a memory moves where it has more than 1,024 pages: nobody goes back over that.
    for (engine, pages) in engines().into_iter().flat_map(|engine| {
        let engines = [engine.clone(), engine];
        engines.into_iter().zip([2, 1100])
    }) {
        let mut guest = Guest::start(&engine);
        guest.grow(pages - 2).unwrap();
        let mut fork = Guest::fork(&engine, &guest);
        for round in 0..6u32 {
            guest.set(round * 400, round as i32).unwrap();
            guest.set(pages * PAGE - 4, -1 - round as i32).unwrap();
            let keeper = guest.keep(1 << 20);
            let expected = guest.bytes();
            // The first and the last block, some more often, and what it grows by.
            for at in [0, 4, 3 * round * PAGE % (pages * PAGE), pages * PAGE - 8] {
                guest.set(at, 0x5555).unwrap();
            }
            if round % 2 == 1 {
                assert_eq!(guest.grow(3), Ok(pages as i32));
                guest.set((pages + 2) * PAGE, 7).unwrap();
            }
            fork.follow(&guest);
            fork.set(round * 4096, 0x6666).unwrap();
            assert!(keeper.is_whole() && keeper.blocks() <= 3);
            assert!(fork.bytes() != expected && guest.bytes() != expected);
            drop(guest);
            guest = Guest::back(&engine, &keeper, pages);
            assert!(guest.bytes() == expected, "{round}");
            assert!(!keeper.is_whole());
            let end = pages * PAGE;
            assert_eq!(guest.get(end - 3), Err(Trap::MemoryOutOfBounds));
            // Who followed the one before follows this one.
            fork.follow(&guest);
            assert!(fork.bytes() == expected);
        }
        guest.grow(3).unwrap();
        let had_a_seven = (pages + 2) * PAGE;
        assert_eq!(guest.get(had_a_seven), Ok(0));
    }
}

#[test]
fn nobody_goes_back_where_more_was_written_than_is_kept() {
    for engine in engines() {
        let mut guest = Guest::start(&engine);
        guest.grow(98).unwrap();
        let keeper = guest.keep(5);
        for page in 0..5 {
            guest.set(page * PAGE, 1).unwrap();
            assert!(keeper.is_whole());
        }
        assert_eq!(keeper.blocks(), 5);
        guest.set(50 * PAGE, 2).unwrap();
        assert!(!keeper.is_whole());
        assert!(guest.captures[0].is_over());
        // Nothing is in its way any more.
        guest.captures.clear();
        (0..100).for_each(|page| guest.set(page * PAGE, 3).unwrap());
        assert!(Guest::start(&engine).memory.take_over(&keeper).is_err());
        // Nor is where nobody wants to go back any more.
        drop(guest.keep(5));
        guest.captures.clear();
        (0..100).for_each(|page| guest.set(page * PAGE, 4).unwrap());
        // Nor to where it was before it moved.
        let keeper = guest.keep(1 << 20);
        guest.set(0, 5).unwrap();
        assert_eq!(guest.grow(1500), Ok(100));
        assert_eq!(keeper.is_whole(), engine.layout().is_fixed());
        (0..1600).for_each(|page| guest.set(page * PAGE, 6).unwrap());
    }
}

#[test]
fn the_newest_of_many_captures_is_what_is_gone_back_to() {
    for engine in engines() {
        let mut guest = Guest::start(&engine);
        guest.grow(98).unwrap();
        // Few blocks are written between two, or many, or it grows; or the one before was given up.
        for (round, (writes, grows, most)) in [
            (1, 0, 100),
            (3, 0, 100),
            (90, 0, 100),
            (2, 1, 100),
            (0, 0, 100),
            (60, 0, 10),
            (1, 0, 100),
            (8, 2, 100),
        ]
        .into_iter()
        .enumerate()
        {
            let former = guest.keep(most);
            for page in 0..writes {
                guest.set(page * PAGE + 4, round as i32).unwrap();
            }
            guest.grow(grows).unwrap();
            let pages = guest.memory.bytes() as u32 / PAGE;
            let keeper = guest.keep(100);
            assert!(!former.is_whole());
            let expected = guest.bytes();
            for page in [0, 1, 2, 50, 99, pages - 1] {
                guest.set(page * PAGE + 8, -1).unwrap();
            }
            drop(guest);
            guest = Guest::back(&engine, &keeper, pages);
            assert!(guest.bytes() == expected, "{round}");
        }
    }
}

#[test]
fn what_is_read_can_be_gone_back_to_at_the_same_time() {
    for engine in engines() {
        let mut guest = Guest::start(&engine);
        guest.grow(98).unwrap();
        for round in 0..8u32 {
            (0..100).for_each(|page| guest.set(page * PAGE + round, page as i32).unwrap());
            let expected = guest.bytes();
            let captured = guest.capture();
            let keeper = captured.keeper(20);
            let reader = std::thread::spawn(|| read(captured));
            for page in (0..10 + 10 * (round % 4)).rev() {
                guest.set(page * PAGE + 400, round as i32).unwrap();
            }
            // Sooner or later than the reader.
            let early = round % 2 == 0;
            let reader = match early {
                true => Err(reader),
                false => Ok(reader.join().unwrap()),
            };
            let copied = keeper.blocks();
            drop(guest);
            guest = Guest::start(&engine);
            let back = guest.memory.take_over(&keeper);
            let read = reader.unwrap_or_else(|reader| reader.join().unwrap());
            assert!(read == expected, "{round}");
            match back {
                Ok(()) => {
                    guest.grow(0).unwrap();
                    guest.grow(98).unwrap();
                    assert!(guest.bytes() == expected, "{round}");
                }
                // As many were written as were to be kept, and one more.
                Err(_) => {
                    assert!(copied >= 20);
                    guest = Guest::start(&engine);
                    guest.grow(98).unwrap();
                }
            }
        }
    }
}

#[test]
fn what_is_put_back_and_what_a_fork_gives_are_writes_as_others_are() {
    for engine in engines() {
        let mut guest = Guest::start(&engine);
        let mut fork = Guest::fork(&engine, &guest);
        fork.set(5, 5).unwrap();
        let keeper = guest.keep(10);
        fork.memory.give(&guest.memory, Given::Written).unwrap();
        assert!(guest.memory.put(PAGE as usize - 2, &[1, 2, 3, 4]));
        assert_eq!((guest.get(5), keeper.blocks()), (Ok(5), 2));
        assert!(!guest.memory.put(2 * PAGE as usize - 2, &[0; 4]));
        drop(guest);
        let mut guest = Guest::back(&engine, &keeper, 2);
        assert_eq!((guest.get(5), guest.get(PAGE - 2)), (Ok(0), Ok(0)));
    }
}

#[test]
fn a_capture_that_is_still_read_keeps_its_copies_when_another_begins() {
    for engine in engines() {
        let mut guest = Guest::start(&engine);
        guest.set(8, 1).unwrap();
        let one = guest.capture();
        let _kept = one.keeper(100);
        guest.set(8, 2).unwrap();
        let two = guest.capture();
        let _kept = two.keeper(100);
        guest.set(PAGE + 8, 3).unwrap();
        guest.set(8, 3).unwrap();
        let [one, two] = [read(one), read(two)];
        assert_eq!((one[8], one[PAGE as usize + 8]), (1, 0));
        assert_eq!((two[8], two[PAGE as usize + 8]), (2, 0));
    }
}
