//! The binary form of what is rewritten: sections, names, numbers.

use wasm_encoder::Encode;
use wasmparser::{ExternalKind, FuncType, ValType};

use super::error::RewriteError;

// Ids of sections.

pub(in crate::wasm::code) const SECTION_CUSTOM: u8 = 0;
pub(in crate::wasm::code) const SECTION_TYPE: u8 = 1;
pub(in crate::wasm::code) const SECTION_IMPORT: u8 = 2;
pub(in crate::wasm::code) const SECTION_EXPORT: u8 = 7;
pub(in crate::wasm::code) const SECTION_START: u8 = 8;
pub(in crate::wasm::code) const SECTION_ELEMENT: u8 = 9;
pub(in crate::wasm::code) const SECTION_CODE: u8 = 10;
pub(in crate::wasm::code) const SECTION_DATA: u8 = 11;
pub(in crate::wasm::code) const SECTION_DATA_COUNT: u8 = 12;
pub(in crate::wasm::code) const SECTION_COMPONENT_MODULE: u8 = 1;
pub(in crate::wasm::code) const SECTION_CORE_INSTANCE: u8 = 2;
pub(in crate::wasm::code) const SECTION_COMPONENT_COMPONENT: u8 = 4;
pub(in crate::wasm::code) const SECTION_ALIAS: u8 = 6;

/// Sort of a core instance, as the encoding has it.
pub(in crate::wasm::code) const SORT_CORE_INSTANCE: u8 = 0x12;

pub(in crate::wasm::code) const GLOBAL_GET: u8 = 0x23;
pub(in crate::wasm::code) const GLOBAL_SET: u8 = 0x24;

pub(in crate::wasm::code) fn core_sort(kind: ExternalKind) -> Result<u8, RewriteError> {
    Ok(match kind {
        ExternalKind::Func => 0x00,
        ExternalKind::Table => 0x01,
        ExternalKind::Memory => 0x02,
        ExternalKind::Global => 0x03,
        _ => return Err(RewriteError::Unknown("an export")),
    })
}

pub(in crate::wasm::code) fn push_section(out: &mut Vec<u8>, id: u8, contents: &[u8]) {
    out.push(id);
    push_u32(out, contents.len() as u32);
    out.extend_from_slice(contents);
}

pub(in crate::wasm::code) fn push_name(out: &mut Vec<u8>, name: &str) {
    name.encode(out);
}

/// A section's contents behind the number of its items.
pub(in crate::wasm::code) fn without_count(section: &[u8]) -> Result<&[u8], RewriteError> {
    let len = section
        .iter()
        .position(|byte| byte & 0x80 == 0)
        .ok_or(RewriteError::Unknown("a section's count"))?;
    Ok(&section[len + 1..])
}

pub(in crate::wasm::code) fn push_func_type(
    out: &mut Vec<u8>,
    ty: &FuncType,
) -> Result<(), RewriteError> {
    out.push(0x60);
    for values in [ty.params(), ty.results()] {
        push_u32(out, values.len() as u32);
        for value in values {
            push_val_type(out, *value)?;
        }
    }
    Ok(())
}

pub(in crate::wasm::code) fn push_val_type(
    out: &mut Vec<u8>,
    ty: ValType,
) -> Result<(), RewriteError> {
    out.push(match ty {
        ValType::I32 => 0x7f,
        ValType::I64 => 0x7e,
        ValType::F32 => 0x7d,
        ValType::F64 => 0x7c,
        ValType::V128 => 0x7b,
        ValType::FUNCREF => 0x70,
        ValType::EXTERNREF => 0x6f,
        ValType::Ref(_) => return Err(RewriteError::Unknown("a reference type")),
    });
    Ok(())
}

pub(in crate::wasm::code) fn push_s33(out: &mut Vec<u8>, value: u32) {
    push_signed(out, i64::from(value));
}

pub(in crate::wasm::code) fn push_signed(out: &mut Vec<u8>, value: i64) {
    value.encode(out);
}

pub(in crate::wasm::code) fn push_u32(out: &mut Vec<u8>, value: u32) {
    value.encode(out);
}
