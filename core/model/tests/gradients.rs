//! The adapter's gradient against finite differences, and what backward leaves out.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]

mod support;

use std::sync::Arc;

use forgelm_kernels_api::Segment;
use forgelm_kernels_check::counting::Counting;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    Activations, Adapter, Decoder, Descent, DropoutStep, Keep, LoraConfig, ModelConfig,
    ModuleNames, PackedInput, PartialGradient, Pass, Scored, Selection, StepSize, Trainable,
};
use forgelm_tensor::random::{Purpose, Stream};
use support::{Batch, noise, short_name, tiny_config, tiny_decoder, tiny_store};

const LENGTHS: [usize; 3] = [5, 1, 7];

struct Case {
    decoder: Decoder,
    adapter: Adapter,
    batch: Batch,
    /// Weight of each log-probability in the loss.
    dlogp: Vec<f32>,
    stream: Stream,
}

impl Case {
    fn new(lora: LoraConfig) -> Self {
        let stream = Stream::new(3, Purpose::LoraInit);
        let adapter = Adapter::new(lora, &tiny_config(), &stream).expect("a good adapter");
        Self::of(&tiny_config(), adapter)
    }

    /// Weights of the base that train.
    fn of_weights(config: &ModelConfig, selection: Selection) -> Self {
        Self::of(config, Trainable::zeroed(selection, config).expect("good names"))
    }

    fn of(config: &ModelConfig, mut adapter: Trainable) -> Self {
        let mut decoder = tiny_decoder(config, Arc::new(Reference));
        decoder.begin(&mut adapter, &tiny_store(config)).expect("the tiny model is complete");
        let n = adapter.params().len();
        for (p, add) in adapter.params_mut().iter_mut().zip(noise(77, n, 0.1)) {
            *p += add;
        }
        decoder.refresh(&mut adapter);
        let batch = Batch::random(1, &LENGTHS, config.vocab_size);
        let dlogp = noise(5, batch.scored().0.len(), 1.0);
        Self { decoder, adapter, batch, dlogp, stream: Stream::new(9, Purpose::Dropout) }
    }

    fn activations(&self, keep: Keep) -> Activations {
        let size = StepSize { tokens_max: 16, scored_rows_max: 16 };
        Activations::new(&self.decoder, Some(&self.adapter), size, keep).expect("there is memory")
    }

    fn pass<'a>(&'a self, adapter: &'a Adapter) -> Pass<'a> {
        let dropout = Some(DropoutStep { stream: &self.stream, step: 4 });
        Pass { adapter: Some(adapter), batch: self.batch.input(), dropout }
    }

    fn loss(&self, adapter: &Adapter, acts: &mut Activations) -> f64 {
        let (rows, labels) = self.batch.scored();
        let mut logp = vec![0.0; rows.len()];
        let pass = self.pass(adapter);
        self.decoder.forward(&pass, acts);
        self.decoder.logprobs(&pass, acts, Scored { rows: &rows, labels: &labels }, &mut logp);
        logp.iter().zip(&self.dlogp).map(|(&l, &d)| f64::from(l) * f64::from(d)).sum()
    }

    fn gradient(&self, keep: Keep) -> Vec<f32> {
        let mut acts = self.activations(keep);
        let _ = self.loss(&self.adapter, &mut acts);
        let (rows, labels) = self.batch.scored();
        let scored = Scored { rows: &rows, labels: &labels };
        let mut grads = vec![0.0; self.adapter.params().len()];
        let pass = self.pass(&self.adapter);
        self.decoder.backward(&pass, &mut acts, scored, &self.dlogp, &mut grads);
        grads
    }

    /// Derivative of the loss along `direction` within one slice, by central differences of fourth
    /// order.
    fn derivative(&self, at: std::ops::Range<usize>, direction: &[f32], h: f32) -> f64 {
        let mut acts = self.activations(Keep::Nothing);
        let mut moved = |sign: f32| {
            let mut adapter = self.adapter.clone();
            for (p, d) in adapter.params_mut()[at.clone()].iter_mut().zip(direction) {
                *p += sign * h * d;
            }
            self.decoder.refresh(&mut adapter);
            self.loss(&adapter, &mut acts)
        };
        let (near, far) = (moved(1.0) - moved(-1.0), moved(2.0) - moved(-2.0));
        (8.0 * near - far) / (12.0 * f64::from(h))
    }
}

/// Every slice of the adapter, along a random direction of length 1. The loss is a sum of 10 terms
/// near 4 that went through f32, each known to a few 2.4e-7, so a difference of fourth order is
/// known to about 1.5 * 10 * 1e-6 / (2 h) = 1.5e-3 in the worst case at h = 5e-3.
fn assert_gradient_is_the_derivative(case: &Case) {
    assert_derivatives(case, |_| true);
}

/// As [`assert_gradient_is_the_derivative`], of the slices whose names are chosen.
fn assert_derivatives(case: &Case, is_chosen: impl Fn(&str) -> bool) {
    let grads = case.gradient(Keep::Everything);
    let mut largest = 0.0_f64;
    for slice in case.adapter.slices().into_iter().filter(|slice| is_chosen(&slice.name)) {
        let mut direction = noise(slice.range.start as u64 + 100, slice.range.len(), 1.0);
        let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
        direction.iter_mut().for_each(|d| *d /= length);
        let analytic: f64 = grads[slice.range.clone()]
            .iter()
            .zip(&direction)
            .map(|(&g, &d)| f64::from(g) * f64::from(d))
            .sum();
        let numeric = case.derivative(slice.range.clone(), &direction, 5e-3);
        assert!(
            (analytic - numeric).abs() <= 1.5e-3 + 1e-3 * numeric.abs(),
            "{}: {analytic} by hand, {numeric} by differences",
            slice.name
        );
        largest = largest.max(numeric.abs());
    }
    // Twenty times the bound.
    assert!(largest > 0.03, "derivatives near the bound would prove nothing: {largest}");
}

#[test]
fn gradient_is_the_derivative_for_all_linear_layers_with_one_kv_head() {
    let case = Case::new(LoraConfig::new(4, 8.0, &["all-linear"]));
    assert_eq!(case.adapter.slices().len(), 3 * 7 * 2);
    assert_gradient_is_the_derivative(&case);
}

#[test]
fn gradient_is_the_derivative_under_dropout() {
    let mut lora = LoraConfig::new(4, 8.0, &["all-linear"]);
    lora.dropout = 0.3;
    assert_gradient_is_the_derivative(&Case::new(lora));
}

#[test]
fn gradient_is_the_derivative_for_each_target_alone() {
    for linear in tiny_config().linears(1) {
        assert_gradient_is_the_derivative(&Case::new(LoraConfig::new(
            2,
            4.0,
            &[&short_name(linear)],
        )));
    }
}

#[test]
fn gradient_is_the_derivative_when_only_upper_layers_are_adapted() {
    for linear in tiny_config().linears(1) {
        let target = linear.path(1, ModuleNames::Qwen);
        let case = Case::new(LoraConfig::new(2, 4.0, &[&target, "model.layers.2.mlp.up_proj"]));
        assert_eq!(case.adapter.first_layer(), 1);
        assert_gradient_is_the_derivative(&case);
    }
}

#[test]
fn gradient_is_the_derivative_for_every_weight_of_the_model() {
    let case = Case::of_weights(&tiny_config(), Selection::Everything);
    assert_eq!(case.adapter.slices().len(), 3 * 9 + 3);
    assert_gradient_is_the_derivative(&case);
}

/// A tied head: one gradient, the sum of both uses.
#[test]
fn gradient_is_the_derivative_when_head_and_embedding_are_one() {
    let mut config = tiny_config();
    config.tie_word_embeddings = true;
    let case = Case::of_weights(&config, Selection::Everything);
    assert_eq!(case.adapter.slices().len(), 3 * 9 + 2);
    assert_gradient_is_the_derivative(&case);
}

#[test]
fn gradient_is_the_derivative_for_chosen_weights_alone() {
    let config = tiny_config();
    for names in [
        &["model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"][..],
        &["model.layers.2.post_attention_layernorm.weight", "lm_head.weight"],
        &["model.layers.1.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"],
        &["model.norm.weight"],
        &["model.embed_tokens.weight"],
    ] {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        assert_gradient_is_the_derivative(&Case::of_weights(&config, Selection::Weights(names)));
    }
}

/// The norm under a magnitude is taken as constant, so only magnitudes have derivatives that
/// differences can show; theirs come through the layers above, whose inputs' gradients they need.
#[test]
fn gradient_is_the_derivative_for_magnitudes_with_and_without_dropout() {
    for dropout in [0.0, 0.3] {
        let mut lora = LoraConfig::new(4, 8.0, &["all-linear"]);
        (lora.dora, lora.dropout) = (true, dropout);
        let case = Case::new(lora);
        assert_derivatives(&case, |name| name.ends_with("lora_magnitude_vector"));
        assert_eq!(case.gradient(Keep::Everything), case.gradient(Keep::LayerInputs));
    }
}

/// Dropout acts on the change of the weight alone: with magnitudes at their start there is none.
#[test]
fn magnitudes_at_their_start_change_nothing_even_under_dropout() {
    let config = tiny_config();
    let mut lora = LoraConfig::new(4, 8.0, &["all-linear"]);
    (lora.dora, lora.dropout) = (true, 0.5);
    let stream = Stream::new(3, Purpose::LoraInit);
    let mut case = Case::new(lora.clone());
    let mut adapter = Adapter::new(lora, &config, &stream).expect("a good adapter");
    case.decoder.begin(&mut adapter, &tiny_store(&config)).expect("the tiny model is complete");
    case.adapter = adapter;
    let mut acts = case.activations(Keep::Nothing);
    let found = case.loss(&case.adapter, &mut acts);
    let plain = Case::new(LoraConfig::new(4, 8.0, &["q_proj"]));
    let mut acts = plain.activations(Keep::Nothing);
    let (rows, labels) = plain.batch.scored();
    let pass = Pass { adapter: None, batch: plain.batch.input(), dropout: None };
    let mut logp = vec![0.0; rows.len()];
    plain.decoder.forward(&pass, &mut acts);
    let scored = Scored { rows: &rows, labels: &labels };
    plain.decoder.logprobs(&pass, &mut acts, scored, &mut logp);
    let expected: f64 =
        logp.iter().zip(&plain.dlogp).map(|(&l, &d)| f64::from(l) * f64::from(d)).sum();
    assert!((found - expected).abs() < 2e-5, "{found}, without an adapter {expected}");
}

#[test]
#[should_panic(expected = "the trained numbers changed; `Decoder::refresh` comes first")]
fn a_pass_over_old_derived_forms_is_refused() {
    let mut case = Case::of_weights(&tiny_config(), Selection::Everything);
    case.adapter.params_mut()[0] += 1.0;
    let mut acts = case.activations(Keep::Nothing);
    let _ = case.loss(&case.adapter, &mut acts);
}

/// A token's dropout mask belongs to the token, not to its place in a batch. Only the order of the
/// additions differs.
#[test]
fn a_batch_s_gradient_is_the_sum_of_its_sequences() {
    let mut lora = LoraConfig::new(4, 8.0, &["all-linear"]);
    lora.dropout = 0.3;
    let case = Case::new(lora);
    let whole = case.gradient(Keep::Everything);
    let (rows, labels) = case.batch.scored();
    let mut sum = vec![0.0; whole.len()];
    for segment in &case.batch.segments {
        let at = segment.start..segment.start + segment.len;
        let input = PackedInput {
            tokens: &case.batch.tokens[at.clone()],
            positions: &case.batch.positions[at.clone()],
            segments: &[Segment { start: 0, len: segment.len }],
            row_keys: &case.batch.row_keys[at.clone()],
        };
        let within = (0..rows.len()).filter(|&i| at.contains(&(rows[i] as usize)));
        let terms: Vec<usize> = within.collect();
        let rows: Vec<u32> = terms.iter().map(|&i| rows[i] - segment.start as u32).collect();
        let labels: Vec<u32> = terms.iter().map(|&i| labels[i]).collect();
        let dlogp: Vec<f32> = terms.iter().map(|&i| case.dlogp[i]).collect();
        let pass = Pass { batch: input, ..case.pass(&case.adapter) };
        let scored = Scored { rows: &rows, labels: &labels };
        let mut acts = case.activations(Keep::Everything);
        let mut logp = vec![0.0; rows.len()];
        case.decoder.forward(&pass, &mut acts);
        case.decoder.logprobs(&pass, &mut acts, scored, &mut logp);
        case.decoder.backward(&pass, &mut acts, scored, &dlogp, &mut sum);
    }
    for (i, (a, b)) in sum.iter().zip(&whole).enumerate() {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "value {i}: {a}, in one batch {b}");
    }
}

#[test]
fn one_pass_over_the_vocabulary_gives_the_same_gradient() {
    let case = Case::new(LoraConfig::new(4, 8.0, &["all-linear"]));
    let twice = case.gradient(Keep::Everything);
    let (rows, labels) = case.batch.scored();
    let scored = Scored { rows: &rows, labels: &labels };
    let mut acts = case.activations(Keep::Everything);
    let (mut logp, mut again) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
    let pass = case.pass(&case.adapter);
    case.decoder.forward(&pass, &mut acts);
    case.decoder.logprobs(&pass, &mut acts, scored, &mut again);
    case.decoder.logprobs_with_gradient(&pass, &mut acts, scored, &mut logp);
    assert_eq!(logp, again);
    let mut once = vec![0.0; twice.len()];
    case.decoder.backward(&pass, &mut acts, scored, &case.dlogp, &mut once);
    for (i, (a, b)) in once.iter().zip(&twice).enumerate() {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "value {i}: {a}, in two passes {b}");
    }
}

#[test]
fn computing_layers_again_gives_the_same_bits() {
    let mut lora = LoraConfig::new(4, 8.0, &["q_proj", "v_proj", "down_proj"]);
    lora.dropout = 0.2;
    let case = Case::new(lora);
    assert_eq!(case.gradient(Keep::Everything), case.gradient(Keep::LayerInputs));
}

#[test]
fn gradients_are_added_and_masked_terms_add_nothing() {
    let mut case = Case::new(LoraConfig::new(4, 8.0, &["all-linear"]));
    let once = case.gradient(Keep::Everything);
    case.dlogp.fill(0.0);
    let zero = case.gradient(Keep::Everything);
    assert!(zero.iter().all(|g| g.to_bits() & 0x7fff_ffff == 0), "zero dlogp, zero gradient");
    assert!(once.iter().any(|g| g.abs() > 1e-3));
}

/// A step of the tiny model has 3 layers; with only layer 2 adapted, layers 0 and 1 must not be
/// touched on the way back, and with q and v only, layer 2 needs no gradient of its input.
#[test]
fn nothing_below_the_lowest_adapted_module_goes_backward() {
    let calls = |make: &dyn Fn(&ModelConfig) -> Trainable| {
        let config = tiny_config();
        let ops = Arc::new(Counting::new(Arc::new(Reference)));
        let mut decoder = tiny_decoder(&config, ops.clone());
        let mut adapter = make(&config);
        decoder.begin(&mut adapter, &tiny_store(&config)).expect("the tiny model is complete");
        let size = StepSize { tokens_max: 16, scored_rows_max: 16 };
        let mut acts = Activations::new(&decoder, Some(&adapter), size, Keep::Everything)
            .expect("there is memory");
        let batch = Batch::random(1, &LENGTHS, config.vocab_size);
        let (rows, labels) = batch.scored();
        let scored = Scored { rows: &rows, labels: &labels };
        let pass = Pass { adapter: Some(&adapter), batch: batch.input(), dropout: None };
        let mut logp = vec![0.0; rows.len()];
        decoder.forward(&pass, &mut acts);
        decoder.logprobs(&pass, &mut acts, scored, &mut logp);
        ops.take();
        let mut grads = vec![0.0; adapter.params().len()];
        decoder.backward(&pass, &mut acts, scored, &logp, &mut grads);
        let tallies = ops.take();
        let calls = |op| tallies.get(op).map_or(0, |tally| tally.calls);
        [
            calls("linear_backward"),
            calls("attention_backward"),
            calls("glu_backward"),
            calls("rms_norm_backward"),
        ]
    };
    let backward_calls = |targets: &[&str]| {
        calls(&|config| {
            let stream = Stream::new(3, Purpose::LoraInit);
            Adapter::new(LoraConfig::new(2, 4.0, targets), config, &stream).expect("good targets")
        })
    };
    // One norm is the last one, before the head.
    assert_eq!(backward_calls(&["model.layers.2.mlp.down_proj"]), [0, 0, 0, 1]);
    assert_eq!(backward_calls(&["model.layers.2.mlp.up_proj"]), [1, 0, 1, 1]);
    assert_eq!(backward_calls(&["model.layers.2.self_attn.o_proj"]), [3, 0, 1, 2]);
    let qv_of_layer_2 = ["model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.v_proj"];
    assert_eq!(backward_calls(&qv_of_layer_2), [4, 1, 1, 2]);
    // Layers 2 and 1 whole (7 products, 2 norms each), and layer 0 down to q and v.
    assert_eq!(backward_calls(&["q_proj", "v_proj"]), [7 + 7 + 4, 3, 3, 1 + 2 + 2 + 1]);
    // The same for weights of the base; a norm needs the products above it.
    let weights_calls = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        calls(&|config| {
            Trainable::zeroed(Selection::Weights(names.clone()), config).expect("good names")
        })
    };
    assert_eq!(weights_calls(&["lm_head.weight", "model.norm.weight"]), [0, 0, 0, 1]);
    assert_eq!(weights_calls(&["model.layers.2.mlp.down_proj.weight"]), [0, 0, 0, 1]);
    assert_eq!(weights_calls(&["model.layers.2.self_attn.v_proj.weight"]), [4, 1, 1, 2]);
    assert_eq!(weights_calls(&["model.layers.2.input_layernorm.weight"]), [7, 1, 1, 3]);
    assert_eq!(weights_calls(&["model.embed_tokens.weight"]), [3 * 7, 3, 3, 1 + 3 * 2]);
}

/// One part after the other, each read as soon as it is final, the gradient of everything has the
/// same bits.
#[test]
fn a_pass_down_part_by_part_gives_the_gradient_of_everything() {
    let attention = |layer: usize| format!("model.layers.{layer}.self_attn.k_proj.weight");
    let selections = [
        Selection::Everything,
        Selection::Weights(vec![attention(1), attention(2)]),
        Selection::Weights(vec!["model.norm.weight".to_owned()]),
        Selection::Weights(vec!["model.embed_tokens.weight".to_owned(), attention(2)]),
        Selection::Adapter(LoraConfig::new(2, 4.0, &["q_proj", "down_proj"])),
        Selection::Adapter(LoraConfig {
            dora: true,
            ..LoraConfig::new(2, 4.0, &["model.layers.1.mlp.up_proj"])
        }),
    ];
    for tie_word_embeddings in [false, true] {
        let config = ModelConfig { tie_word_embeddings, ..tiny_config() };
        for selection in &selections {
            let case = Case::of_weights(&config, selection.clone());
            for keep in [Keep::Everything, Keep::LayerInputs] {
                let mut acts = case.activations(keep);
                let _ = case.loss(&case.adapter, &mut acts);
                let (rows, labels) = case.batch.scored();
                let scored = Scored { rows: &rows, labels: &labels };
                let pass = case.pass(&case.adapter);
                let mut part =
                    PartialGradient::new(&case.adapter, &Reference).expect("there is memory");
                let mut grads = vec![f32::NAN; case.adapter.params().len()];
                let mut descent = Descent::begin();
                let given = (scored, &case.dlogp[..]);
                while let Some(slices) =
                    case.decoder.descend(&mut descent, &pass, &mut acts, given, &mut part)
                {
                    for range in slices {
                        assert!(grads[range.clone()].iter().all(|g| g.is_nan()), "twice");
                        grads[range.clone()].copy_from_slice(part.of(range).on_host());
                    }
                }
                let whole = case.gradient(keep);
                assert!(whole == grads, "{selection:?}, tied {tie_word_embeddings}, {keep:?}");
                let bytes = size_of_val(grads.as_slice());
                let held = PartialGradient::planned_bytes(&case.adapter);
                assert!(held <= bytes, "{held} of {bytes}");
            }
        }
    }
}

/// The frozen copies of what trains are not read: a decoder without them gives the same numbers,
/// and holds only what is left.
#[test]
fn a_decoder_that_gave_back_what_trains_gives_the_same_bits() {
    let attention = |layer: usize| format!("model.layers.{layer}.self_attn.k_proj.weight");
    let selections = [
        (Selection::Everything, 0),
        (Selection::Weights(vec![attention(0), "model.embed_tokens.weight".to_owned()]), 1),
    ];
    for tie_word_embeddings in [false, true] {
        let config = ModelConfig { tie_word_embeddings, ..tiny_config() };
        for (selection, is_part) in &selections {
            let kept = Case::of_weights(&config, selection.clone());
            let mut alone = Case::of_weights(&config, selection.clone());
            let mut decoder = tiny_decoder(&config, Arc::new(Reference));
            let whole = decoder.weights_bytes();
            let mut adapter = Trainable::zeroed(selection.clone(), &config).expect("good names");
            let store = tiny_store(&config);
            decoder.begin_alone(&mut adapter, &store).expect("the tiny model is complete");
            let given_back = whole - decoder.weights_bytes();
            assert_eq!(given_back, adapter.packed_bytes(forgelm_kernels_api::Compute::F32));
            assert!((*is_part == 1) == (given_back < whole * 9 / 10), "{given_back} of {whole}");
            alone.decoder = decoder;
            for keep in [Keep::Everything, Keep::LayerInputs] {
                assert!(alone.gradient(keep) == kept.gradient(keep), "{selection:?} {keep:?}");
            }
        }
    }
}
