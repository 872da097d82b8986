//! The command line.

use clap::{Args, Parser, Subcommand};

use crate::checked::Integrity;
use crate::config::{ChatOptions, EncoderOptions, HubOption, ModelOptions, Options, QuantizeOptions};

/// Arbora serves language models over an OpenAI-compatible API, computing shared prefixes once.
#[derive(Debug, Parser)]
#[command(name = "arbora", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP
    Serve(Box<Options>),
    /// Answer one prompt on the terminal
    Generate(Box<GenerateOptions>),
    /// Turn texts into vectors, as lines of JSON
    Embed(EmbedOptions),
    /// Talk to a running server on the terminal
    Chat(Box<ChatOptions>),
    /// Fetch a model into the cache and say where it is
    Pull(PullOptions),
    /// Write a model with its weights quantized
    Quantize(QuantizeOptions),
    /// List the models in the cache
    Models,
    /// Say what a model is and what memory it takes, without loading it
    Inspect(ModelOption),
}

/// Options of `arbora pull`.
#[derive(Clone, Debug, Args)]
pub struct PullOptions {
    /// GGUF file, folder, smollm2:135m, or a name of the hub (OWNER/NAME@REVISION:FILE, or :QUANTIZATION)
    pub model: String,
    /// Where it comes from.
    #[command(flatten)]
    pub hub: HubOption,
    /// Hash the files again, also where they look as they did when they were hashed last
    #[arg(long)]
    pub verify: bool,
}

impl PullOptions {
    /// When files are hashed.
    pub fn integrity(&self) -> Integrity {
        match self.verify {
            true => Integrity::Always,
            false => Integrity::WhenChanged,
        }
    }
}

/// The one thing that `inspect` needs.
#[derive(Clone, Debug, Args)]
pub struct ModelOption {
    /// GGUF file, folder, smollm2:135m, or a name of the hub (OWNER/NAME@REVISION:FILE, or :QUANTIZATION)
    pub model: String,
    /// Where it comes from.
    #[command(flatten)]
    pub hub: HubOption,
}

/// Options of `arbora generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateOptions {
    /// The prompt; standard input where it is missing
    pub prompt: Option<String>,
    /// A system message before the prompt
    #[arg(long, conflicts_with = "raw")]
    pub system: Option<String>,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long)]
    pub raw: bool,
    /// Most tokens of the answer [default: what fits]
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Draw from this many likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Same seed, same answer [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// End the answer before this text; may be repeated
    #[arg(long)]
    pub stop: Vec<String>,
    /// Which model, and on what.
    #[command(flatten)]
    pub model: ModelOptions,
}

/// Options of `arbora embed`.
#[derive(Clone, Debug, Args)]
pub struct EmbedOptions {
    /// The texts; the lines of standard input where there are none
    pub texts: Vec<String>,
    /// What the texts are, by the name of one of the model's prompts, such as query or document
    #[arg(long)]
    pub prompt_name: Option<String>,
    /// Only the first so many elements, scaled to length 1 [default: all]
    #[arg(long)]
    pub dimensions: Option<usize>,
    /// Cut off the end of texts that are too long instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// Which model, and on what.
    #[command(flatten)]
    pub model: EncoderOptions,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_short() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        for name in [
            "serve", "generate", "embed", "chat", "pull", "quantize", "models", "inspect",
        ] {
            let subcommand = command.find_subcommand(name).expect("there is one");
            let n = subcommand
                .get_arguments()
                .filter(|a| a.get_id() != "help")
                .count();
            assert!(n <= 43, "{name} has {n} options");
            let in_order = subcommand
                .get_arguments()
                .filter(|a| a.get_long() != Some("help"));
            let headings: Vec<_> = in_order.map(|a| a.get_help_heading()).collect();
            assert!(
                name != "serve" || headings.iter().all(Option::is_some),
                "each has its place"
            );
        }
    }
}
