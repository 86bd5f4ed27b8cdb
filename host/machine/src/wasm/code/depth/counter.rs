//! The counter itself: the module that holds it, its import, and the instructions that count.

use super::cost::STACK_LIMIT;
use crate::wasm::code::rewriting::encode::{
    GLOBAL_GET, GLOBAL_SET, SECTION_EXPORT, push_name, push_section, push_signed, push_u32,
};
use crate::wasm::code::rewriting::error::COUNTER_MODULE;

/// What the modules import the counter as.
const COUNTER_FIELD: &str = "s";

/// The count of one function.
pub(super) struct Counter {
    /// Index of the global that holds it.
    pub(super) global: u32,
    pub(super) cost: u32,
    pub(super) limit: u32,
}

impl Counter {
    pub(super) fn enter(&self, out: &mut Vec<u8>) {
        self.add(out, 0x6a); // i32.add
        self.global_get(out);
        push_i32_const(out, self.limit as i32);
        out.extend_from_slice(&[0x4b, 0x04, 0x40, 0x00, 0x0b]); // i32.gt_u; if; unreachable; end
    }

    pub(super) fn leave(&self, out: &mut Vec<u8>) {
        self.add(out, 0x6b); // i32.sub
    }

    fn add(&self, out: &mut Vec<u8>, operator: u8) {
        self.global_get(out);
        push_i32_const(out, self.cost.min(i32::MAX as u32 - STACK_LIMIT) as i32);
        out.push(operator);
        out.push(GLOBAL_SET);
        push_u32(out, self.global);
    }

    fn global_get(&self, out: &mut Vec<u8>) {
        out.push(GLOBAL_GET);
        push_u32(out, self.global);
    }
}

/// `(module (global (export "s") (mut i32) (i32.const 0)))`.
pub(super) fn counter_module() -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    push_section(&mut module, 6, &[1, 0x7f, 0x01, 0x41, 0x00, 0x0b]);
    let mut export = vec![1];
    push_name(&mut export, COUNTER_FIELD);
    export.extend_from_slice(&[0x03, 0x00]);
    push_section(&mut module, SECTION_EXPORT, &export);
    module
}

/// `(import "skep:stack" "s" (global (mut i32)))`.
pub(super) fn push_counter_import(out: &mut Vec<u8>) {
    push_name(out, COUNTER_MODULE);
    push_name(out, COUNTER_FIELD);
    out.extend_from_slice(&[0x03, 0x7f, 0x01]);
}

fn push_i32_const(out: &mut Vec<u8>, value: i32) {
    out.push(0x41);
    push_signed(out, i64::from(value));
}
