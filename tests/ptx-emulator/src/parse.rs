//! The parser of PTX text: modules, declarations, scopes and labels. Instructions are decoded in `decode`.
//!
//! `{ }` opens a scope for registers and labels, as inline assembly needs.

use std::collections::HashMap;

use crate::isa::{Addr, Instruction, Kernel, Op, Param, PredSrc, Reg, Special, Src, Ty};

pub(crate) type Result<T, E = String> = std::result::Result<T, E>;

/// What could not be understood, and where.
#[derive(Debug)]
pub struct ParseError {
    /// Line of the PTX text.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

/// A global variable of a module, with its initial bytes.
#[derive(Debug)]
pub struct GlobalVariable {
    /// As it is declared.
    pub name: String,
    /// What it holds when the module is loaded.
    pub bytes: Vec<u8>,
}

/// The kernels of a PTX text.
#[derive(Debug, Default)]
pub struct Module {
    /// By name.
    pub kernels: HashMap<String, Kernel>,
    /// As `.target` says.
    pub target: String,
    /// In the order of their declarations. A launch is told where they are.
    pub globals: Vec<GlobalVariable>,
}

impl Module {
    /// Parses a whole text.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        let mut parser = Parser {
            text: text.as_bytes(),
            at: 0,
            line: 1,
            module: Module::default(),
            symbols: HashMap::new(),
            shared: Vec::new(),
        };
        parser.module_level().map_err(|message| ParseError {
            line: parser.line,
            message,
        })?;
        Ok(parser.module)
    }
}

/// What a name that is no register stands for.
#[derive(Clone, Copy, Debug)]
enum Symbol {
    Shared(u64),
    DynamicShared,
    Local(u64),
    Param(u32),
    Global(u32),
}

#[derive(Clone, Copy, Debug)]
enum Name {
    Reg(Reg),
    Pred(Reg),
}

#[derive(Default)]
struct Scope {
    names: HashMap<String, Name>,
    labels: HashMap<String, usize>,
    /// Branches of this scope whose label was not seen yet.
    pending: Vec<(usize, String)>,
}

/// A kernel while its text is read.
pub(crate) struct Body {
    pub(crate) kernel: Kernel,
    symbols: HashMap<String, Symbol>,
    scopes: Vec<Scope>,
    source_line: u32,
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    module: Module,
    symbols: HashMap<String, Symbol>,
    /// Shared variables of functions that were inlined: name, bytes and alignment.
    shared: Vec<(String, usize, usize)>,
}

impl Parser<'_> {
    fn peek(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }

    fn bump(&mut self) -> u8 {
        let byte = self.peek();
        self.at += 1;
        if byte == b'\n' {
            self.line += 1;
        }
        byte
    }

    fn skip_blank(&mut self) {
        loop {
            match (self.peek(), self.text.get(self.at + 1)) {
                (b' ' | b'\t' | b'\r' | b'\n', _) => {
                    self.bump();
                }
                (b'/', Some(b'/')) => {
                    while self.peek() != b'\n' && self.at < self.text.len() {
                        self.bump();
                    }
                }
                (b'/', Some(b'*')) => {
                    while self.at < self.text.len() && !self.text[self.at..].starts_with(b"*/") {
                        self.bump();
                    }
                    self.at += 2;
                }
                _ => return,
            }
        }
    }

    /// Text up to one of `ends`, comments left out; the end is consumed.
    fn until(&mut self, ends: &[u8]) -> String {
        let mut out = String::new();
        while self.at < self.text.len() {
            if self.text[self.at..].starts_with(b"//") {
                while self.at < self.text.len() && self.peek() != b'\n' {
                    self.at += 1;
                }
                continue;
            }
            let byte = self.bump();
            if ends.contains(&byte) {
                break;
            }
            let is_blank = byte == b'\n' || byte == b'\t';
            out.push(if is_blank { ' ' } else { byte as char });
        }
        out.trim().to_owned()
    }

    fn module_level(&mut self) -> Result<()> {
        loop {
            self.skip_blank();
            let rest = &self.text[self.at.min(self.text.len())..];
            if rest.is_empty() || rest[0] == 0 {
                return Ok(());
            }
            let starts = |word: &str| rest.starts_with(word.as_bytes());
            if starts(".version") || starts(".address_size") || starts(".file") || starts(".loc") {
                self.until(b"\n");
            } else if starts(".target") {
                self.module.target = self.until(b"\n")[7..].trim().to_owned();
            } else if starts(".section") {
                self.until(b"}");
            } else {
                let start = (self.at, self.line);
                let head = self.until(b";{");
                let is_body = self.text[self.at - 1] == b'{';
                if head.contains(".entry") {
                    // The head may hold the braces of nothing else: parameters come in parentheses.
                    self.kernel(&head)?;
                } else if head.contains(".func") {
                    if is_body {
                        return Err(format!(
                            "functions that are not inlined are not supported: {head}"
                        ));
                    }
                } else {
                    (self.at, self.line) = start;
                    let declaration = self.until(b";");
                    self.module_variable(&declaration)?;
                }
            }
        }
    }

    fn module_variable(&mut self, text: &str) -> Result<()> {
        let (declaration, initial) = text.split_once('=').map_or((text, None), |(a, b)| (a, Some(b)));
        let Declaration {
            name,
            ty,
            count,
            align,
        } = Declaration::parse(declaration)?;
        if declaration.contains(".shared") {
            if declaration.contains(".extern") {
                self.symbols.insert(name, Symbol::DynamicShared);
            } else {
                self.shared
                    .push((name, count * ty.bytes(), align.max(ty.bytes())));
            }
            return Ok(());
        }
        let mut bytes = vec![0; count * ty.bytes()];
        let values = initial
            .unwrap_or_default()
            .trim()
            .trim_start_matches('{')
            .trim_end_matches('}');
        let values = values.split(',').map(str::trim).filter(|value| !value.is_empty());
        for (value, out) in values.zip(bytes.chunks_exact_mut(ty.bytes())) {
            let value = immediate(value).ok_or_else(|| format!("initial value {value}"))?;
            out.copy_from_slice(&value.to_le_bytes()[..ty.bytes()]);
        }
        self.symbols
            .insert(name.clone(), Symbol::Global(self.module.globals.len() as u32));
        self.module.globals.push(GlobalVariable { name, bytes });
        Ok(())
    }

    fn kernel(&mut self, head: &str) -> Result<()> {
        let mut kernel = Kernel::default();
        let mut symbols = self.symbols.clone();
        let after = head.split_once(".entry").ok_or("an entry")?.1;
        let (name, params) = after.split_once('(').unwrap_or((after, ""));
        kernel.name = name.split_whitespace().next().unwrap_or_default().to_owned();
        let (params, directives) = params.split_once(')').unwrap_or((params, ""));
        for param in params.split(',').filter(|param| !param.trim().is_empty()) {
            let Declaration {
                name,
                ty,
                count,
                align,
            } = Declaration::parse(param)?;
            let bytes = ty.bytes() * count;
            let offset = kernel.param_bytes.next_multiple_of(align.max(ty.bytes()));
            kernel.params.push(Param { offset, bytes });
            kernel.param_bytes = offset + bytes;
            symbols.insert(name, Symbol::Param(offset as u32));
        }
        // Each kernel gets them all; those that do not use one have a little more than they need.
        for (name, bytes, align) in &self.shared {
            let at = kernel.static_shared.next_multiple_of(*align);
            kernel.static_shared = at + bytes;
            symbols.insert(name.clone(), Symbol::Shared(at as u64));
        }
        let limit = directives
            .split_once(".maxntid")
            .or(directives.split_once(".reqntid"));
        if let Some((_, threads)) = limit {
            let threads = threads.split('.').next().unwrap_or_default();
            kernel.max_threads = threads
                .split(',')
                .filter_map(|n| n.trim().parse::<usize>().ok())
                .product();
        }
        let mut body = Body {
            kernel,
            symbols,
            scopes: vec![Scope::default()],
            source_line: 0,
        };
        while !body.scopes.is_empty() {
            self.statement(&mut body)?;
        }
        let mut kernel = body.kernel;
        // The driver may align it less; no kernel here relies on more.
        kernel.dynamic_shared_at = kernel.static_shared.next_multiple_of(1024);
        self.module.kernels.insert(kernel.name.clone(), kernel);
        Ok(())
    }

    fn statement(&mut self, body: &mut Body) -> Result<()> {
        self.skip_blank();
        let rest = &self.text[self.at.min(self.text.len())..];
        match rest.first() {
            None => return Err("the text ends inside a body".into()),
            Some(b'{') => {
                self.bump();
                body.scopes.push(Scope::default());
                return Ok(());
            }
            Some(b'}') => {
                self.bump();
                return body.close_scope();
            }
            _ => {}
        }
        if rest.starts_with(b".loc") || rest.starts_with(b".file") {
            let text = self.until(b"\n");
            let line = text
                .strip_prefix(".loc")
                .and_then(|text| text.split_whitespace().nth(1));
            body.source_line = line
                .and_then(|line| line.parse().ok())
                .unwrap_or(body.source_line);
            return Ok(());
        }
        // A label is a name and a single colon.
        let is_name = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'$' | b'_' | b'%');
        let n = rest.iter().take_while(is_name).count();
        if n > 0 && rest.get(n) == Some(&b':') && rest.get(n + 1) != Some(&b':') {
            let label = String::from_utf8_lossy(&rest[..n]).into_owned();
            self.at += n + 1;
            let target = body.kernel.code.len();
            body.scope().labels.insert(label, target);
            return Ok(());
        }
        let line = self.line;
        let text = self.until(b";");
        let result = if text.starts_with(".pragma") {
            Ok(())
        } else if text.starts_with(".reg") {
            body.registers(&text)
        } else if text.starts_with('.') {
            body.variable(&text)
        } else {
            body.instruction(&text, line as u32)
        };
        result.map_err(|message| format!("{message} in `{text}`"))
    }
}

/// A declared variable: `count` elements of `ty`.
struct Declaration {
    name: String,
    ty: Ty,
    count: usize,
    align: usize,
}

impl Declaration {
    fn parse(text: &str) -> Result<Declaration> {
        let (mut ty, mut align, mut name) = (None, 1, "");
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            if word == ".align" {
                align = words.next().and_then(|n| n.parse().ok()).ok_or("alignment")?;
            } else if let Some(directive) = word.strip_prefix('.') {
                ty = Ty::parse(directive).or(ty);
            } else {
                name = word;
            }
        }
        let ty = ty.ok_or_else(|| format!("type of `{text}`"))?;
        // An array without a length is dynamic shared memory.
        let (name, count) = match name.split_once('[') {
            Some((name, count)) => (name, count.trim_end_matches(']').parse().unwrap_or(0)),
            None => (name, 1),
        };
        Ok(Declaration {
            name: name.to_owned(),
            ty,
            count,
            align,
        })
    }
}

/// A number as PTX writes it.
pub(crate) fn immediate(text: &str) -> Option<u64> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let text = text.strip_suffix('U').unwrap_or(text);
    let value = if let Some(hex) = text.strip_prefix("0f").or(text.strip_prefix("0F")) {
        u64::from(u32::from_str_radix(hex, 16).ok()?)
    } else if let Some(hex) = text.strip_prefix("0d").or(text.strip_prefix("0D")) {
        u64::from_str_radix(hex, 16).ok()?
    } else if let Some(hex) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()?
    } else {
        text.parse().ok()?
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

/// Splits at commas outside of brackets.
pub(crate) fn operands(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0, 0, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' | b'{' | b'(' => depth += 1,
            b']' | b'}' | b')' => depth -= 1,
            b',' if depth == 0 => {
                out.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        out.push(text[start..].trim());
    }
    out
}

impl Body {
    fn scope(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("statements stand in an open scope")
    }

    /// Ends a scope; labels that it does not have are looked for in the one around it.
    fn close_scope(&mut self) -> Result<()> {
        let scope = self.scopes.pop().expect("statements stand in an open scope");
        for (at, label) in scope.pending {
            match (scope.labels.get(&label), self.scopes.last_mut()) {
                (Some(&target), _) => self.kernel.code[at].op = Op::Branch(target),
                (None, Some(outer)) => outer.pending.push((at, label)),
                (None, None) => return Err(format!("no label {label}")),
            }
        }
        Ok(())
    }

    fn registers(&mut self, text: &str) -> Result<()> {
        let mut words = text[4..].split_whitespace();
        let ty = words
            .next()
            .and_then(|word| Ty::parse(word.trim_start_matches('.')));
        let is_pred = ty.ok_or("register type")? == Ty::Pred;
        let names: String = words.collect::<Vec<_>>().join(" ");
        for name in names.split(',').map(str::trim) {
            let (name, count) = match name.split_once('<') {
                Some((name, count)) => (name, count.trim_end_matches('>').parse::<usize>().ok()),
                None => (name, None),
            };
            for idx in 0..count.unwrap_or(1) {
                let full = count.map_or(name.to_owned(), |_| format!("{name}{idx}"));
                let kernel = &mut self.kernel;
                let counter = if is_pred {
                    &mut kernel.n_predicates
                } else {
                    &mut kernel.n_registers
                };
                let reg = Reg::try_from(*counter).map_err(|_| "too many registers")?;
                *counter += 1;
                let entry = if is_pred { Name::Pred(reg) } else { Name::Reg(reg) };
                self.scope().names.insert(full, entry);
            }
        }
        Ok(())
    }

    fn variable(&mut self, text: &str) -> Result<()> {
        let Declaration {
            name,
            ty,
            count,
            align,
        } = Declaration::parse(text)?;
        let (bytes, align) = (ty.bytes() * count, align.max(ty.bytes()));
        if text.starts_with(".shared") {
            let at = self.kernel.static_shared.next_multiple_of(align);
            self.kernel.static_shared = at + bytes;
            self.symbols.insert(name, Symbol::Shared(at as u64));
        } else if text.starts_with(".local") {
            let at = self.kernel.local_bytes.next_multiple_of(align);
            self.kernel.local_bytes = at + bytes;
            self.symbols.insert(name, Symbol::Local(at as u64));
        } else {
            return Err("unknown directive".into());
        }
        Ok(())
    }

    fn instruction(&mut self, text: &str, line: u32) -> Result<()> {
        let (guard, text) = match text.strip_prefix('@') {
            None => (None, text),
            Some(rest) => {
                let (guard, rest) = rest.split_once(char::is_whitespace).ok_or("guard")?;
                let PredSrc::Reg(reg, negated) = self.pred_src(guard)? else {
                    return Err("guard".into());
                };
                (Some((reg, negated)), rest.trim())
            }
        };
        let (mnemonic, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let parts: Vec<&str> = mnemonic.split('.').collect();
        let operands = operands(rest);
        let op = if parts[0] == "bra" {
            let at = self.kernel.code.len();
            let label = operands.first().ok_or("target")?;
            self.scope().pending.push((at, (*label).to_owned()));
            Op::Nop
        } else {
            crate::decode::decode(self, &parts, &operands)?
        };
        self.kernel.code.push(Instruction {
            guard,
            line,
            source_line: self.source_line,
            op,
        });
        Ok(())
    }

    fn name(&self, text: &str) -> Option<Name> {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.names.get(text).copied())
    }

    pub(crate) fn reg(&self, text: &str) -> Result<Reg> {
        match self.name(text) {
            Some(Name::Reg(reg)) => Ok(reg),
            _ => Err(format!("register {text}")),
        }
    }

    pub(crate) fn pred(&self, text: &str) -> Result<Reg> {
        match self.name(text) {
            Some(Name::Pred(reg)) => Ok(reg),
            _ => Err(format!("predicate {text}")),
        }
    }

    pub(crate) fn pred_src(&self, text: &str) -> Result<PredSrc> {
        if let Some(value) = immediate(text) {
            return Ok(PredSrc::Const(value != 0));
        }
        let (negated, name) = text.strip_prefix('!').map_or((false, text), |name| (true, name));
        Ok(PredSrc::Reg(self.pred(name)?, negated))
    }

    /// A register or the sink `_`.
    pub(crate) fn sink(&self, text: &str) -> Result<Option<Reg>> {
        if text == "_" {
            Ok(None)
        } else {
            self.reg(text).map(Some)
        }
    }

    pub(crate) fn src(&self, text: &str) -> Result<Src> {
        if let Some(Name::Reg(reg)) = self.name(text) {
            return Ok(Src::Reg(reg));
        }
        if let Some(special) = Special::parse(text) {
            return Ok(Src::Special(special));
        }
        if let Some(value) = immediate(text) {
            return Ok(Src::Imm(value));
        }
        match self.symbols.get(text) {
            Some(Symbol::Shared(at) | Symbol::Local(at)) => Ok(Src::Imm(*at)),
            Some(Symbol::Param(at)) => Ok(Src::Param(*at)),
            Some(Symbol::Global(idx)) => Ok(Src::Global(*idx)),
            Some(Symbol::DynamicShared) => Ok(Src::DynamicShared),
            None => Err(format!("operand {text}")),
        }
    }

    pub(crate) fn addr(&self, text: &str) -> Result<Addr> {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let inner = inner.ok_or_else(|| format!("address {text}"))?.trim();
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset = immediate(offset.trim()).ok_or_else(|| format!("offset {offset}"))? as i64;
        Ok(Addr {
            base: self.src(base.trim())?,
            offset,
        })
    }

    /// The elements of `{a, b}`, or the one operand that it is.
    pub(crate) fn list(text: &str) -> Vec<&str> {
        match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(inner) => operands(inner),
            None => vec![text],
        }
    }

    pub(crate) fn srcs(&self, text: &str) -> Result<Vec<Src>> {
        Self::list(text).iter().map(|text| self.src(text)).collect()
    }

    pub(crate) fn regs(&self, text: &str) -> Result<Vec<Reg>> {
        Self::list(text).iter().map(|text| self.reg(text)).collect()
    }

    /// Destinations, some of which may be sinks.
    pub(crate) fn sinks(&self, text: &str) -> Result<Vec<Option<Reg>>> {
        Self::list(text).iter().map(|text| self.sink(text)).collect()
    }
}
