//! The machine of a group, in plain Rust.

use std::io::{self, Write};

use bytes::Bytes;
use skep::{Descriptor, EntryContext, NativeMachine, Rejection};

/// Adds numbers. A command is a number in decimal; the answer, to a query too, is the sum.
pub struct Sum(pub u64);

impl NativeMachine for Sum {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "sum".into(),
            version: "1".into(),
            schema: 1,
            oldest_schema: 1,
        }
    }

    fn apply(&mut self, _: &EntryContext, command: &Bytes) -> Result<Bytes, Rejection> {
        let text = str::from_utf8(command).unwrap_or_default();
        let sum = text.parse().ok().and_then(|n| self.0.checked_add(n));
        self.0 = sum.ok_or_else(|| Rejection::new(1, "not a number, or too large"))?;
        Ok(self.0.to_string().into())
    }

    fn query(&self, _: &EntryContext, _: &Bytes) -> Result<Bytes, Rejection> {
        Ok(self.0.to_string().into())
    }

    fn save(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.0.to_le_bytes())
    }

    fn restore(&self, _: u32, from: &Bytes) -> Result<Self, Rejection> {
        let bytes = from[..].try_into();
        let bytes = bytes.map_err(|_| Rejection::new(2, "not eight bytes"))?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}
