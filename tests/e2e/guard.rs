//! Tiny models that judge texts, their weights made by hand: a safety classifier, and a judge.
//!
//! One layer of Llama, 32 wide. Its only head looks for a word: every token asks for the same key, which
//! the words below alone have, so that what stands for the word is in the residual stream from there on.
//! What comes next is a table over the token that is read and the word that was seen. Without one it
//! writes `safe`; with ` spider` it writes `Unsafe` and `S1`, with ` France` and `S9`, with ` legs` no
//! verdict, with ` capital` nothing; with ` numbers` it is not sure that it is safe.

use crate::support::{Workplace, tiny_llama};
use forgelm_artifact::safetensors::{SafetensorsFile, TensorToWrite, to_bytes};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;

const WIDTH: usize = 32;
const VOCAB: usize = 512;
/// The unit of the table of next tokens.
const UNIT: f32 = 0.15;

/// Tokens that the guard tells apart: the end of the prompt, and those that it writes.
const READ: [&str; 12] = ["<|unk|>", "s", "a", "f", "e", "U", "n", "\u{10a}", "S", "1", "9", "m"];
const SEEN: [&str; 5] =
    ["\u{120}spider", "\u{120}France", "\u{120}legs", "\u{120}capital", "\u{120}numbers"];
const END: &str = "<|im_end|>";

/// Places in the residual stream: one that is always on, the token, the words, the words seen.
const ALWAYS: usize = 0;
const FIRST_READ: usize = 1;
const FIRST_WORD: usize = FIRST_READ + READ.len();
const FIRST_SEEN: usize = FIRST_WORD + SEEN.len();
const OTHER: usize = FIRST_SEEN + SEEN.len();

/// What follows a token, and how strongly.
const AFTER: &[(&str, &[(&str, f32)])] = &[
    ("<|unk|>", &[("s", 10.0), ("U", 5.0), ("m", 5.0), (END, 5.0)]),
    ("U", &[("n", 30.0)]),
    ("n", &[("s", 30.0)]),
    ("s", &[("a", 30.0)]),
    ("a", &[("f", 30.0)]),
    ("f", &[("e", 30.0)]),
    ("e", &[(END, 10.0), ("\u{10a}", 5.0)]),
    ("\u{10a}", &[("S", 30.0)]),
    ("S", &[("1", 30.0), ("9", 30.0)]),
    ("1", &[(END, 30.0)]),
    ("9", &[(END, 30.0)]),
    ("m", &[(END, 30.0)]),
];
/// What a word that was seen adds, in the order of [`SEEN`].
const ADDED: [&[(&str, f32)]; 5] = [
    &[("U", 10.0), ("\u{10a}", 10.0), ("1", 5.0)],
    &[("U", 10.0), ("\u{10a}", 10.0), ("9", 5.0)],
    &[("m", 10.0)],
    &[(END, 10.0)],
    &[("U", 4.5)],
];

const TEMPLATE: &str = "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + \
                        message['content'] + '<|im_end|>\\n' }}{%- endfor %}{{- '<|unk|>' }}";

/// A matrix with these numbers, and zero elsewhere.
struct Matrix {
    shape: [usize; 2],
    values: Vec<f32>,
}

impl Matrix {
    fn new(rows: usize, columns: usize) -> Self {
        Self { shape: [rows, columns], values: vec![0.0; rows * columns] }
    }

    fn add(&mut self, row: usize, column: usize, value: f32) {
        self.values[row * self.shape[1] + column] += value;
    }
}

/// The id of each token of the tiny tokenizer.
fn vocabulary() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(tiny_llama().join("tokenizer.json")).unwrap();
    let tokenizer: Value = serde_json::from_str(&text).unwrap();
    let tokens = tokenizer["model"]["vocab"].as_object().unwrap();
    tokens.iter().map(|(text, id)| (text.clone(), id.as_u64().unwrap() as usize)).collect()
}

fn body(n_vocab: usize) -> Vec<(&'static str, Matrix)> {
    let ids = vocabulary();
    let mut embedding = Matrix::new(n_vocab, WIDTH);
    let place = |id: usize| {
        let of = |list: &[&str]| list.iter().position(|text| ids[*text] == id);
        of(&READ).map(|i| FIRST_READ + i).or(of(&SEEN).map(|i| FIRST_WORD + i)).unwrap_or(OTHER)
    };
    for id in 0..n_vocab {
        embedding.add(id, ALWAYS, 1.0);
        embedding.add(id, place(id), 1.0);
    }
    // The last pair of a head turns slowest with the position. After the norm a number is 4.
    let (slow, strength) = (15, 10.0_f32.sqrt());
    let [mut query, mut key, mut value, mut out] = [(); 4].map(|()| Matrix::new(WIDTH, WIDTH));
    query.add(slow, ALWAYS, strength);
    for i in 0..SEEN.len() {
        key.add(slow, FIRST_WORD + i, strength);
        value.add(i, FIRST_WORD + i, 0.25);
        out.add(FIRST_SEEN + i, i, 1.0);
    }
    let none = || Matrix::new(WIDTH, WIDTH);
    vec![
        ("model.embed_tokens.weight", embedding),
        ("model.layers.0.self_attn.q_proj.weight", query),
        ("model.layers.0.self_attn.k_proj.weight", key),
        ("model.layers.0.self_attn.v_proj.weight", value),
        ("model.layers.0.self_attn.o_proj.weight", out),
        ("model.layers.0.mlp.gate_proj.weight", none()),
        ("model.layers.0.mlp.up_proj.weight", none()),
        ("model.layers.0.mlp.down_proj.weight", none()),
    ]
}

fn config(class: &str) -> Value {
    json!({
        "architectures": [class],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": false,
        "vocab_size": VOCAB,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 3,
    })
}

fn write(place: &Workplace, dir: &str, config: &Value, head: (&str, Matrix)) {
    let folder = place.path(dir);
    fs::create_dir_all(&folder).unwrap();
    let copied = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    for name in copied {
        fs::copy(tiny_llama().join(name), folder.join(name)).unwrap();
    }
    place.write(&format!("{dir}/config.json"), &config.to_string());
    place.write(&format!("{dir}/chat_template.jinja"), TEMPLATE);
    let mut matrices = body(config["vocab_size"].as_u64().unwrap() as usize);
    matrices.push(head);
    let ones = [1.0; WIDTH];
    let norms = [
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
    ];
    let matrices = matrices.iter().map(|(name, m)| TensorToWrite::f32(name, &m.shape, &m.values));
    let norms = norms.iter().map(|name| TensorToWrite::f32(name, &[WIDTH], &ones));
    let tensors: Vec<TensorToWrite<'_>> = matrices.chain(norms).collect();
    let bytes = to_bytes(&tensors, &BTreeMap::new());
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// A guard that writes its verdict, as a folder of the workplace.
pub fn write_guard(place: &Workplace, dir: &str) {
    let ids = vocabulary();
    let mut head = Matrix::new(VOCAB, WIDTH);
    for (read, next) in AFTER {
        let column = FIRST_READ + READ.iter().position(|text| text == read).unwrap();
        next.iter().for_each(|(token, weight)| head.add(ids[*token], column, weight * UNIT));
    }
    for (i, added) in ADDED.iter().enumerate() {
        let column = FIRST_SEEN + i;
        added.iter().for_each(|(token, weight)| head.add(ids[*token], column, weight * UNIT));
    }
    write(place, dir, &config("LlamaForCausalLM"), ("lm_head.weight", head));
}

/// A judge that gives 8 where ` spider` was seen, else 5. Each reply is one token of its own.
pub fn write_judge(place: &Workplace, dir: &str) {
    let replies = [5, 8].map(|score| json!({"score": score, "reason": "as told"}).to_string());
    let ids = vocabulary();
    let mut head = Matrix::new(VOCAB + replies.len(), WIDTH);
    head.add(VOCAB, FIRST_READ, 10.0 * UNIT);
    head.add(VOCAB + 1, FIRST_SEEN, 20.0 * UNIT);
    // After a reply, which is no token that is told apart.
    head.add(ids[END], OTHER, 40.0 * UNIT);
    let mut config = config("LlamaForCausalLM");
    config["vocab_size"] = json!(VOCAB + replies.len());
    config["max_position_embeddings"] = json!(8192);
    write(place, dir, &config, ("lm_head.weight", head));
    let file = format!("{dir}/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&place.read(&file)).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for (i, reply) in replies.iter().enumerate() {
        added.push(json!({
            "id": VOCAB + i, "content": reply, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false,
        }));
    }
    place.write(&file, &tokenizer.to_string());
}

/// A classifier with these labels: the second where ` spider` was seen, else the first.
pub fn write_head(place: &Workplace, dir: &str, labels: &[&str]) {
    let mut head = Matrix::new(labels.len(), WIDTH);
    head.add(0, ALWAYS, 0.5);
    if labels.len() > 1 {
        head.add(1, FIRST_SEEN, 1.5);
    }
    let named = labels.iter().enumerate().map(|(i, label)| (i.to_string(), json!(label)));
    let mut config = config("LlamaForSequenceClassification");
    config["id2label"] = Value::Object(named.collect());
    write(place, dir, &config, ("score.weight", head));
}

/// Takes the words out of what the tiny model can say, so that prompts alone decide the verdict.
pub fn hush(place: &Workplace, dir: &str) {
    let path = place.path(dir).join("model.safetensors");
    let ids = vocabulary();
    let bytes = {
        let file = SafetensorsFile::open(&path).unwrap();
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let views: Vec<_> = names.iter().map(|name| file.tensor(name).unwrap()).collect();
        let tensors: Vec<TensorToWrite<'_>> = names
            .iter()
            .zip(&views)
            .map(|(name, view)| {
                let mut bytes = view.bytes.to_vec();
                if name == "lm_head.weight" {
                    let row = bytes.len() / VOCAB;
                    for word in SEEN {
                        bytes[ids[word] * row..][..row].fill(0);
                    }
                }
                let bytes = Cow::Owned(bytes);
                TensorToWrite { name, dtype: view.dtype, shape: view.shape, bytes }
            })
            .collect();
        to_bytes(&tensors, &BTreeMap::new())
    };
    fs::write(path, bytes).unwrap();
}
