//! `POST /models/load` and `POST /models/unload`: orders about models.

use super::error::ApiError;
use super::fields::Fields;

/// What an operator wants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelOrder {
    /// Its name.
    pub model: String,
    /// Where it is to come from, as after `--model`; from where it came before where absent.
    pub source: Option<String>,
}

impl ModelOrder {
    /// Reads a body that asks for a model to be loaded.
    pub fn parse_load(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let (model, source) = (name(&mut f)?, f.optional("source")?);
        f.finish_strictly()?;
        Ok(ModelOrder { model, source })
    }

    /// Reads a body that asks for a model to be unloaded.
    pub fn parse_unload(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let model = name(&mut f)?;
        f.finish_strictly()?;
        Ok(ModelOrder { model, source: None })
    }
}

/// Longest name of a model.
const MAX_NAME: usize = 256;

fn name(f: &mut Fields) -> Result<String, ApiError> {
    let model: String = f.required("model")?;
    match model.len() {
        1..=MAX_NAME => Ok(model),
        n => {
            let message = format!("'model' has {n} bytes, the name of a model has between 1 and {MAX_NAME}.");
            Err(ApiError::invalid("model", message))
        }
    }
}
