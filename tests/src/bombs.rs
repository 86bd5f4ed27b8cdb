//! Components that a compiler takes much longer for, and far more memory, than their size would say. Each is the built-in
//! machine with one more core module, which is compiled although nothing instantiates it.

/// The machine that the module is added to, which is a good one.
const MACHINE: &[u8] = skep_examples::KV;

const SECTION_TYPE: u8 = 1;
const SECTION_FUNCTION: u8 = 3;
const SECTION_CODE: u8 = 10;
const SECTION_COMPONENT_MODULE: u8 = 1;

/// `locals` values that any of thousands of loops may have set anew, so that the compiler has to tell them apart behind each:
/// 1,000 of them in 100 KB took it 22 s of processor time and 1.2 GB, 3,000 took 55 s and 3 GB.
pub fn phi(size: usize, locals: u32) -> Vec<u8> {
    let mut uses = Vec::new();
    for local in 1..=locals {
        uses.push(0x20); // local.get
        unsigned(&mut uses, local);
        uses.push(0x6a); // i32.add
    }
    let mut body = Vec::new();
    let mut at = 0;
    while body.len() + uses.len() < size {
        body.extend([0x03, 0x40, 0x20]); // loop; local.get
        unsigned(&mut body, 1 + at * 7 % locals);
        body.push(0x21); // local.set
        unsigned(&mut body, 1 + (at * 13 + 5) % locals);
        body.extend([0x20, 0x00, 0x0d, 0x00, 0x0b]); // local.get 0; br_if 0; end
        at += 1;
    }
    body.extend([0x20, 0x00]); // local.get 0
    body.extend(uses);
    with_function(&body, locals)
}

/// So many targets of `br_table`s, a byte each: 6.7 million took 44 s and 2.5 GB.
pub fn br_tables(targets: u32) -> Vec<u8> {
    const OF_ONE: u32 = 60_000;
    let mut body = Vec::new();
    let mut left = targets;
    while left > 0 {
        let targets = left.min(OF_ONE);
        body.extend([0x02, 0x40, 0x02, 0x40, 0x20, 0x00, 0x0e]); // block; block; local.get 0; br_table
        unsigned(&mut body, targets);
        body.extend((0..targets).map(|target| (target % 2) as u8));
        body.extend([0x00, 0x0b, 0x0b]); // the default; end; end
        left -= targets;
    }
    body.extend([0x20, 0x00]); // local.get 0
    with_function(&body, 1)
}

/// The machine with a function `(param i32) (result i32)` beside it.
fn with_function(body: &[u8], locals: u32) -> Vec<u8> {
    let mut function = vec![1]; // one group of locals
    unsigned(&mut function, locals);
    function.push(0x7f); // i32
    function.extend(body);
    function.push(0x0b); // end
    let mut code = vec![1];
    unsigned(&mut code, function.len() as u32);
    code.extend(function);
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    section(&mut module, SECTION_TYPE, &[1, 0x60, 1, 0x7f, 1, 0x7f]);
    section(&mut module, SECTION_FUNCTION, &[1, 0]);
    section(&mut module, SECTION_CODE, &code);
    let mut component = MACHINE.to_vec();
    section(&mut component, SECTION_COMPONENT_MODULE, &module);
    component
}

fn section(out: &mut Vec<u8>, id: u8, content: &[u8]) {
    out.push(id);
    unsigned(out, content.len() as u32);
    out.extend(content);
}

fn unsigned(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
