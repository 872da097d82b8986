//! `quantization_config`: which scheme a checkpoint's matrices are quantized by. What is not read here is
//! refused by its key and value.

use arbora_kernels::quant::Format;
use safetensors::Dtype;
use serde_json::{Map, Value as Json};

use super::super::directory::flatten;
use super::super::file::LoadError;
use super::super::metadata::{KeyError, Metadata};
use super::super::tensors::{TensorInfo, TensorType};

/// Where `config.json` says it, now and in older files.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];
/// The file in which older GPTQ checkpoints do.
pub(in crate::model) const GPTQ_FILE: &str = "quantize_config.json";

/// How the matrices of a checkpoint are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Scheme {
    Integers(Integers),
    Fp8 {
        /// Inputs and outputs that share a scale; where absent, the scales' shape says it.
        block: Option<[usize; 2]>,
    },
}

/// Integers with scales and zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct Integers {
    pub(super) layout: Layout,
    /// 4 or 8.
    pub(super) bits: u32,
    /// Whether the zero point is the middle.
    pub(super) is_symmetric: bool,
    /// What is added to a stored zero point.
    pub(super) zero_offset: i32,
    pub(super) group: Group,
}

/// Inputs that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    All,
    Inputs(usize),
}

/// Where an integer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Words of inputs of one output, `[n_in / n, n_out]`; scales `[n_groups, n_out]`.
    Gptq,
    /// Words of 8 outputs in the order of AWQ's kernels, `[n_in, n_out / 8]`; scales `[n_groups, n_out]`.
    Awq,
    /// Words of inputs of one output, `[n_out, n_in / n]`; scales `[n_out, n_groups]`.
    CompressedTensors,
    /// Signed bytes, `[n_out, n_in]`; scales `[n_out, n_groups]`.
    Int8,
}

/// Names of the tensors beside the integers.
pub(super) struct PartNames {
    pub(super) scales: &'static str,
    pub(super) zeros: &'static str,
    pub(super) groups: Option<&'static str>,
}

impl Integers {
    pub(super) fn part_names(&self) -> PartNames {
        match self.layout {
            Layout::Gptq | Layout::Awq => PartNames {
                scales: "scales",
                zeros: "qzeros",
                groups: (self.layout == Layout::Gptq).then_some("g_idx"),
            },
            Layout::CompressedTensors | Layout::Int8 => PartNames {
                scales: "weight_scale",
                zeros: "weight_zero_point",
                groups: (self.layout == Layout::CompressedTensors).then_some("weight_g_idx"),
            },
        }
    }

    /// The format that holds them exactly, in rows of `n_in`.
    pub(super) fn format(&self, n_in: usize) -> Format {
        match (self.bits, self.is_symmetric) {
            (4, true) => Format::Q4_0,
            (4, false) if self.group.len(n_in).is_multiple_of(128) => Format::U4x128,
            (4, false) => Format::U4,
            (_, true) => Format::Q8_0,
            (_, false) => Format::U8,
        }
    }

    /// Integers in a word.
    pub(super) fn n_in_word(&self) -> usize {
        32 / self.bits as usize
    }
}

impl Scheme {
    /// What `config` says; nothing of a checkpoint in floating point.
    pub(in crate::model) fn of(config: &Map<String, Json>) -> Result<Option<Scheme>, LoadError> {
        let found = KEYS
            .into_iter()
            .find_map(|key| Some((key, config.get(key)?.as_object()?)));
        let Some((key, settings)) = found.filter(|(_, settings)| !settings.is_empty()) else {
            return Ok(None);
        };
        let settings = Settings {
            key,
            values: flatten(settings),
            object: settings,
        };
        let scheme = match settings.text("quant_method", "")?.as_str() {
            "gptq" => settings.gptq(),
            "awq" => settings.awq(),
            "compressed-tensors" => settings.compressed_tensors(),
            "fp8" | "fbgemm_fp8" => settings.fp8(),
            // Experts of gpt-oss: blocks that are read where they are, in a layout of their own.
            "mxfp4" => return Ok(None),
            "modelopt" => match settings.text("quant_algo", "")?.as_str() {
                "fp8" => settings.fp8(),
                other => Err(settings.unsupported("quant_algo", &other)),
            },
            other => Err(settings.unsupported("quant_method", &other)),
        };
        scheme.map(Some)
    }

    /// What an operator calls it.
    pub(super) fn name(&self) -> &'static str {
        let Scheme::Integers(integers) = self else {
            return "FP8";
        };
        match (integers.layout, integers.bits) {
            (Layout::Gptq, 4) => "GPTQ 4-bit",
            (Layout::Gptq, _) => "GPTQ 8-bit",
            (Layout::Awq, _) => "AWQ 4-bit",
            (_, 4) => "INT4",
            (_, _) => "INT8",
        }
    }

    /// The format that most weights get.
    pub(in crate::model) fn usual_format(&self) -> Format {
        match self {
            Scheme::Integers(integers) => integers.format(128),
            Scheme::Fp8 { .. } => Format::Bf16,
        }
    }

    /// The name of the matrix whose values `tensor` has; nothing of another tensor.
    pub(super) fn stem<'t>(&self, tensor: &'t TensorInfo) -> Option<&'t str> {
        let (end, dtypes): (_, &[Dtype]) = match self {
            Scheme::Fp8 { .. } => (".weight", &[Dtype::F8_E4M3]),
            Scheme::Integers(integers) => match integers.layout {
                Layout::Gptq | Layout::Awq => (".qweight", &[Dtype::I32, Dtype::U32]),
                Layout::CompressedTensors => (".weight_packed", &[Dtype::I32, Dtype::U32]),
                Layout::Int8 => (".weight", &[Dtype::I8]),
            },
        };
        let stem = tensor.name.strip_suffix(end)?;
        let is_typed = dtypes
            .iter()
            .any(|&dtype| tensor.kind == TensorType::Safetensors(dtype));
        (is_typed && tensor.dimensions.len() == 2).then_some(stem)
    }

    /// Tensors beside a matrix that say nothing about its weights: their shape, and scales of activations,
    /// which are quantized here as the row has them.
    pub(super) fn silent_parts(&self) -> &'static [&'static str] {
        match self {
            Scheme::Integers(_) => &["weight_shape", "input_scale", "input_zero_point"],
            Scheme::Fp8 { .. } => &["input_scale", "input_scale_ub", "activation_scale"],
        }
    }

    /// Inputs and outputs of the matrix whose values these are.
    pub(super) fn shape(&self, values: &TensorInfo) -> Result<(usize, usize), LoadError> {
        let too_large = || LoadError::BadShape {
            name: values.name.clone(),
            found: values.dimensions.clone(),
            expected: "fewer than 2^28 words each way".to_owned(),
        };
        let sizes: Option<Vec<usize>> = values
            .dimensions
            .iter()
            .map(|&size| usize::try_from(size).ok().filter(|&size| size < 1 << 28))
            .collect();
        let sizes = sizes.ok_or_else(too_large)?;
        let (fast, slow) = (sizes[0], sizes[1]);
        Ok(match self {
            Scheme::Fp8 { .. } => (fast, slow),
            Scheme::Integers(integers) => match integers.layout {
                Layout::Gptq => (slow * integers.n_in_word(), fast),
                Layout::Awq => (slow, fast * integers.n_in_word()),
                Layout::CompressedTensors => (fast * integers.n_in_word(), slow),
                Layout::Int8 => (fast, slow),
            },
        })
    }
}

/// The settings of a checkpoint's quantization.
struct Settings<'a> {
    key: &'static str,
    values: Metadata,
    object: &'a Map<String, Json>,
}

impl Settings<'_> {
    fn unsupported(&self, key: &str, value: &dyn std::fmt::Display) -> LoadError {
        let value = value.to_string();
        LoadError::UnsupportedFeature {
            key: format!("{}.{key}", self.key),
            value: Some(value).filter(|value| !value.is_empty()),
        }
    }

    /// An error names the whole key.
    fn read<T>(&self, found: Result<Option<T>, KeyError>) -> Result<Option<T>, LoadError> {
        let place = |key: String| format!("{}.{key}", self.key);
        found.map_err(|error| {
            let error = match error {
                KeyError::Missing { key } => KeyError::Missing { key: place(key) },
                KeyError::WrongType { key, expected, found } => KeyError::WrongType {
                    key: place(key),
                    expected,
                    found,
                },
                KeyError::OutOfRange { key, value, limit } => KeyError::OutOfRange {
                    key: place(key),
                    value,
                    limit,
                },
            };
            LoadError::Key(error)
        })
    }

    /// In lower case, as cases differ between the programs that write them.
    fn text(&self, key: &str, default: &str) -> Result<String, LoadError> {
        let found = self.read(self.values.text(key))?;
        Ok(found.unwrap_or(default).to_ascii_lowercase())
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        Ok(self.read(self.values.flag(key))?.unwrap_or(default))
    }

    /// Bits of a weight, one of those `supported`.
    fn bits(&self, key: &str, supported: &[u64]) -> Result<u32, LoadError> {
        match self.read(self.values.unsigned(key))? {
            Some(bits) if supported.contains(&bits) => Ok(bits as u32),
            found => Err(self.unsupported(key, &found.map_or(String::new(), |bits| bits.to_string()))),
        }
    }

    /// A group of inputs: -1 is all of them.
    fn group(&self, key: &str) -> Result<Group, LoadError> {
        match self.read(self.values.float(key))? {
            None | Some(-1.0) => Ok(Group::All),
            Some(n) if n >= 32.0 && n <= f64::from(1 << 24) && n % 32.0 == 0.0 => {
                Ok(Group::Inputs(n as usize))
            }
            Some(other) => Err(self.unsupported(key, &other)),
        }
    }

    /// Refuses a setting that is there and neither null, false nor empty.
    fn refuse(&self, key: &str) -> Result<(), LoadError> {
        match self.object.get(key) {
            None | Some(Json::Null | Json::Bool(false)) => Ok(()),
            Some(Json::Object(object)) if object.is_empty() => Ok(()),
            Some(other) => Err(self.unsupported(key, &other)),
        }
    }

    fn gptq(&self) -> Result<Scheme, LoadError> {
        // Settings of some matrices of their own.
        self.refuse("dynamic")?;
        self.refuse("is_marlin_format")?;
        let zero_offset = match self.text("checkpoint_format", "gptq")?.as_str() {
            // Zero points are stored less 1 there.
            "gptq" => 1,
            "gptq_v2" => 0,
            other => return Err(self.unsupported("checkpoint_format", &other)),
        };
        Ok(Scheme::Integers(Integers {
            layout: Layout::Gptq,
            bits: self.bits("bits", &[4, 8])?,
            is_symmetric: self.flag("sym", false)?,
            zero_offset,
            group: self.group("group_size")?,
        }))
    }

    fn awq(&self) -> Result<Scheme, LoadError> {
        match self.text("version", "gemm")?.as_str() {
            "gemm" => {}
            other => return Err(self.unsupported("version", &other)),
        }
        if !self.flag("zero_point", true)? {
            return Err(self.unsupported("zero_point", &false));
        }
        Ok(Scheme::Integers(Integers {
            layout: Layout::Awq,
            bits: self.bits("bits", &[4])?,
            is_symmetric: false,
            zero_offset: 0,
            group: self.group("group_size")?,
        }))
    }

    fn fp8(&self) -> Result<Scheme, LoadError> {
        match self.text("fmt", "e4m3")?.as_str() {
            "e4m3" => {}
            other => return Err(self.unsupported("fmt", &other)),
        }
        self.fp8_blocks("weight_block_size")
    }

    fn fp8_blocks(&self, key: &str) -> Result<Scheme, LoadError> {
        let block = match self.read(self.values.integers(key))? {
            None => None,
            // Outputs first, as shapes have them there.
            Some(&[outputs, inputs]) if outputs > 0 && inputs > 0 => {
                Some([inputs as usize, outputs as usize])
            }
            Some(other) => return Err(self.unsupported(key, &format!("{other:?}"))),
        };
        Ok(Scheme::Fp8 { block })
    }

    /// One scheme for all groups of matrices; those that are not quantized are in no group.
    fn compressed_tensors(&self) -> Result<Scheme, LoadError> {
        let sparsity = self.text("sparsity_config.format", "dense")?;
        if sparsity != "dense" {
            return Err(self.unsupported("sparsity_config.format", &sparsity));
        }
        let groups = self.object.get("config_groups").and_then(Json::as_object);
        let mut schemes = Vec::new();
        for name in groups.into_iter().flat_map(Map::keys) {
            schemes.push(self.compressed_group(name)?);
        }
        match schemes.as_slice() {
            [] => Err(self.unsupported("config_groups", &"")),
            [first, others @ ..] if others.iter().all(|other| other == first) => Ok(*first),
            _ => Err(self.unsupported("config_groups", &"of several kinds")),
        }
    }

    fn compressed_group(&self, name: &str) -> Result<Scheme, LoadError> {
        let key = |end: &str| format!("config_groups.{name}.weights.{end}");
        let own_format = self.read(self.values.text(&format!("config_groups.{name}.format")))?;
        let format = match own_format {
            Some(format) => format.to_owned(),
            None => self.text("format", "")?,
        };
        let layout = match format.as_str() {
            "pack-quantized" => Layout::CompressedTensors,
            "int-quantized" => Layout::Int8,
            "float-quantized" | "naive-quantized" => {
                let kind = self.text(&key("type"), "")?;
                if kind != "float" {
                    return Err(self.unsupported(&key("type"), &kind));
                }
                self.bits(&key("num_bits"), &[8])?;
                return self.fp8_blocks(&key("block_structure"));
            }
            other => return Err(self.unsupported("format", &other)),
        };
        let kind = self.text(&key("type"), "int")?;
        if kind != "int" {
            return Err(self.unsupported(&key("type"), &kind));
        }
        let strategy = self.text(&key("strategy"), "")?;
        let group = match strategy.as_str() {
            "group" => self.group(&key("group_size"))?,
            "channel" | "tensor" => Group::All,
            other => return Err(self.unsupported(&key("strategy"), &other)),
        };
        let bits = match layout {
            Layout::Int8 => self.bits(&key("num_bits"), &[8])?,
            _ => self.bits(&key("num_bits"), &[4, 8])?,
        };
        Ok(Scheme::Integers(Integers {
            layout,
            bits,
            is_symmetric: self.flag(&key("symmetric"), true)?,
            // Integers and zero points are both stored with the middle added, where they are packed.
            zero_offset: 0,
            group,
        }))
    }
}
