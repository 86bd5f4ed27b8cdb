//! Takes the commands of an entry in one call and answers each with the number of keys after the last of them, where
//! `apply` answers with the number after its own. The SDK makes the batch from `apply`, so this one is written without.

#[cfg(target_family = "wasm")]
mod component {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use skep_guest::component::bindings;
    use skep_guest::component::bindings::exports::skep::machine::{
        batch, initializer, queries, state_machine,
    };
    use skep_guest::component::bindings::skep::machine::snapshot_io::{Sink, Source};
    use skep_guest::component::bindings::skep::machine::types::{
        ConfChange, Context, Descriptor, Rejection, StatusChange,
    };

    thread_local! {
        static KEYS: RefCell<BTreeSet<Vec<u8>>> = const { RefCell::new(BTreeSet::new()) };
    }

    struct Keys;

    fn len() -> Vec<u8> {
        KEYS.with_borrow(|keys| keys.len().to_string().into_bytes())
    }

    impl state_machine::Guest for Keys {
        fn describe() -> Descriptor {
            Descriptor {
                name: "batch_differs".into(),
                version: "0.1.0".into(),
                schema: 1,
                oldest_schema: 1,
            }
        }

        fn apply(_: Context, request: Vec<u8>) -> Result<Vec<u8>, Rejection> {
            KEYS.with_borrow_mut(|keys| keys.insert(request));
            Ok(len())
        }

        fn save(to: &Sink) -> Result<(), Rejection> {
            KEYS.with_borrow(|keys| {
                for key in keys {
                    to.write(&(key.len() as u32).to_le_bytes());
                    to.write(key);
                }
            });
            Ok(())
        }

        fn restore(_: u32, from: &Source) -> Result<(), Rejection> {
            while from.remaining() > 0 {
                let mut len = [0; 4];
                len.copy_from_slice(&from.read(4));
                let key = from.read(u32::from_le_bytes(len));
                KEYS.with_borrow_mut(|keys| keys.insert(key));
            }
            Ok(())
        }

        fn apply_conf_change(_: Context, _: ConfChange) -> Result<(), Rejection> {
            Ok(())
        }

        fn process_status_change(_: Context, _: StatusChange) {}
    }

    impl initializer::Guest for Keys {
        fn init(_: Context, _: Vec<u8>) -> Result<(), Rejection> {
            Ok(())
        }
    }

    impl queries::Guest for Keys {
        fn query(_: Context, _: Vec<u8>) -> Result<Vec<u8>, Rejection> {
            Ok(len())
        }
    }

    impl batch::Guest for Keys {
        fn apply_batch(_: Context, requests: Vec<Vec<u8>>) -> Vec<Result<Vec<u8>, Rejection>> {
            let count = requests.len();
            KEYS.with_borrow_mut(|keys| keys.extend(requests));
            vec![Ok(len()); count]
        }
    }

    bindings::export!(Keys with_types_in bindings);
}
