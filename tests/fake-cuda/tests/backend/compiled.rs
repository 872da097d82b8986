//! Every kernel, compiled for every architecture that is served: no spills, and registers below a ceiling.

use std::collections::BTreeMap;

use crate::emulated::nvrtc;
use arbora_kernels::cuda::{HEADER, SOURCES};
use arbora_ptx_emulator::Module;

/// Ampere, Hopper, Blackwell of the data centre and of the desktop.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_90a", "sm_100a", "sm_120a"];

/// Most registers of a thread: so 1,024 threads fit a multiprocessor, half of what it can hold.
const MAX_REGISTERS: u32 = 64;

/// Attributes of `.nv.info`: registers and stack frame of a function, by its symbol.
const REGISTERS: u8 = 0x2f;
const FRAME: u8 = 0x11;

fn number(bytes: &[u8], at: usize, n: usize) -> u64 {
    bytes[at..at + n]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The sections of an ELF file by name: contents, and the number of the section that it links to.
struct Sections<'a> {
    all: Vec<(&'a [u8], usize)>,
    names: Vec<String>,
}

fn text(bytes: &[u8], at: usize) -> String {
    let name = bytes[at..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

impl<'a> Sections<'a> {
    fn of(elf: &'a [u8]) -> Self {
        let (start, each) = (number(elf, 0x28, 8) as usize, number(elf, 0x3a, 2) as usize);
        let headers = (0..number(elf, 0x3c, 2) as usize).map(|idx| &elf[start + idx * each..][..each]);
        let mut sections = Sections {
            all: Vec::new(),
            names: Vec::new(),
        };
        let mut name_offsets = Vec::new();
        for header in headers {
            let (at, n) = (number(header, 0x18, 8) as usize, number(header, 0x20, 8) as usize);
            // A section without bits in the file.
            let bytes = if number(header, 4, 4) == 8 {
                &[][..]
            } else {
                &elf[at..at + n]
            };
            sections.all.push((bytes, number(header, 0x28, 4) as usize));
            name_offsets.push(number(header, 0, 4) as usize);
        }
        let names = sections.all[number(elf, 0x3e, 2) as usize].0;
        sections.names = name_offsets.into_iter().map(|at| text(names, at)).collect();
        sections
    }

    fn named(&self, name: &str) -> (&'a [u8], usize) {
        let idx = self.names.iter().position(|known| known == name);
        self.all[idx.unwrap_or_else(|| panic!("no section {name} in {:?}", self.names))]
    }
}

/// Registers and stack frame in bytes of each function of a cubin.
fn resources(cubin: &[u8]) -> BTreeMap<String, (u32, u32)> {
    let sections = Sections::of(cubin);
    let (symbols, strings) = sections.named(".symtab");
    let strings = sections.all[strings].0;
    let name = |symbol: u64| text(strings, number(symbols, symbol as usize * 24, 4) as usize);
    let (info, _) = sections.named(".nv.info");
    let mut found: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let mut at = 0;
    while at + 4 <= info.len() {
        let (format, attribute) = (info[at], info[at + 1]);
        // Only records of format 4 have a payload, of the size that they give.
        let n = if format == 4 {
            number(info, at + 2, 2) as usize
        } else {
            0
        };
        if n == 8 && [REGISTERS, FRAME].contains(&attribute) {
            let entry = found.entry(name(number(info, at + 4, 4))).or_default();
            let value = number(info, at + 8, 4) as u32;
            if attribute == REGISTERS {
                entry.0 = value;
            } else {
                entry.1 = value;
            }
        }
        at += 4 + n;
    }
    found
}

#[test]
fn kernels_compile_for_every_architecture_without_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    for source in SOURCES {
        let n_kernels = source.text.matches("extern \"C\" __global__").count();
        for arch in ARCHITECTURES {
            let compiled = nvrtc
                .compile(source, HEADER, arch)
                .unwrap_or_else(|error| panic!("{error}"));
            let ptx = String::from_utf8(compiled.ptx).expect("PTX is text");
            let module =
                Module::parse(&ptx).unwrap_or_else(|error| panic!("{} for {arch}: {error}", source.name));
            assert_eq!(module.kernels.len(), n_kernels, "{} for {arch}", source.name);
            let mut kernels = resources(&compiled.cubin);
            assert!(
                kernels.values().all(|(_, frame)| *frame == 0),
                "{kernels:?} for {arch}: something spills"
            );
            // The others are subroutines, as for divisions, whose registers count with their kernels.
            kernels.retain(|_, (registers, _)| *registers > 0);
            assert_eq!(
                kernels.len(),
                n_kernels,
                "{} for {arch}: {kernels:?}",
                source.name
            );
            for (kernel, (registers, _)) in kernels {
                assert!(
                    registers <= MAX_REGISTERS,
                    "{kernel} for {arch}: {registers} registers, the ceiling is {MAX_REGISTERS}"
                );
            }
        }
    }
}
