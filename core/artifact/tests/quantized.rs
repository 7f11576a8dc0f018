//! NF4, FP4 and the dynamic map against bitsandbytes: codes, scales and values are equal.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;

use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_tensor::{BlockScales, DynamicMap, FourBit, FourBitTensor, NestedScales};

fn open(name: &str) -> SafetensorsFile {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/quant");
    SafetensorsFile::open(&folder.join(name)).unwrap()
}

fn bytes(file: &SafetensorsFile, name: &str) -> Vec<u8> {
    file.tensor(name).unwrap().bytes.to_vec()
}

fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.tensor(name).unwrap().to_f32().unwrap()
}

fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.to_bits(), e.to_bits(), "{what}: value {i} is {f}; expected {e}");
    }
}

fn dequantized(tensor: &FourBitTensor) -> Vec<f32> {
    let mut out = vec![f32::NAN; tensor.n_values];
    tensor.dequantize(0, &mut out);
    out
}

#[test]
fn code_books_are_those_of_bitsandbytes() {
    let books = open("codebooks.safetensors");
    assert_same("nf4", FourBit::Nf4.values(), &floats(&books, "nf4"));
    assert_same("fp4", FourBit::Fp4.values(), &floats(&books, "fp4"));
    assert_same("signed", DynamicMap::Signed.values(), &floats(&books, "dynamic_signed"));
    assert_same("unsigned", DynamicMap::Unsigned.values(), &floats(&books, "dynamic_unsigned"));
}

/// Planted: a block of zeros, one of subnormal numbers, values exactly midway.
#[test]
fn four_bit_codes_scales_and_values_are_those_of_bitsandbytes() {
    let input = floats(&open("inputs.safetensors"), "w_f32");
    for (kind, file) in [(FourBit::Nf4, "nf4-f32"), (FourBit::Fp4, "fp4-f32")] {
        let golden = open(&format!("{file}.safetensors"));
        let tensor = FourBitTensor::quantize(kind, &input, false);
        assert_eq!(tensor.packed, bytes(&golden, "packed"), "{file}");
        let BlockScales::Single(scales) = &tensor.scales else { panic!("not double") };
        assert_same(file, scales, &floats(&golden, "absmax"));
        assert_same(file, &dequantized(&tensor), &floats(&golden, "dequant"));
    }
}

#[test]
fn double_quantization_is_that_of_bitsandbytes() {
    let input = floats(&open("inputs.safetensors"), "w_clean");
    let golden = open("nf4-clean-double.safetensors");
    let tensor = FourBitTensor::quantize(FourBit::Nf4, &input, true);
    assert_eq!(tensor.packed, bytes(&golden, "packed"));
    let BlockScales::Double(nested) = &tensor.scales else { panic!("double") };
    assert_eq!(nested.codes, bytes(&golden, "absmax_codes"));
    assert_same("nested", &nested.absmax, &floats(&golden, "absmax_nested"));
    assert_same("offset", &[nested.offset], &floats(&golden, "absmax_offset"));
    let restored: Vec<f32> = (0..nested.codes.len()).map(|b| nested.get(b)).collect();
    assert_same("restored", &restored, &floats(&golden, "absmax_restored"));
    assert_same("values", &dequantized(&tensor), &floats(&golden, "dequant"));
}

#[test]
fn dynamic_codes_and_values_are_those_of_bitsandbytes() {
    let input = floats(&open("inputs.safetensors"), "w_f32");
    let golden = open("int8-f32-256.safetensors");
    let (mut codes, mut absmax) = (vec![0; input.len()], vec![0.0; input.len() / 256]);
    DynamicMap::Signed.quantize(&input, 256, &mut codes, &mut absmax);
    assert_same("absmax", &absmax, &floats(&golden, "absmax"));
    assert_eq!(codes, bytes(&golden, "codes"));
    let mut values = vec![0.0; input.len()];
    DynamicMap::Signed.dequantize(&codes, &absmax, 256, &mut values);
    assert_same("values", &values, &floats(&golden, "dequant"));
}

/// More than one block of scales, scales of FP4, a short last block, the unsigned map.
#[test]
fn more_cases_are_those_of_bitsandbytes() {
    let golden = open("more.safetensors");
    let w = floats(&golden, "w");
    for kind in [FourBit::Nf4, FourBit::Fp4] {
        let part = |name: &str| format!("{}.{name}", kind.name());
        let tensor = FourBitTensor::quantize(kind, &w, true);
        assert_eq!(tensor.packed, bytes(&golden, &part("packed")));
        let BlockScales::Double(nested) = &tensor.scales else { panic!("double") };
        assert_eq!(nested.codes.len(), 300);
        assert_same("nested", &nested.absmax, &floats(&golden, &part("absmax_nested")));
        assert_same("offset", &[nested.offset], &floats(&golden, &part("absmax_offset")));
        assert_eq!(nested.codes, bytes(&golden, &part("absmax_codes")));
        let sum: f64 = dequantized(&tensor).iter().map(|&v| f64::from(v)).sum();
        let expected = bytes(&golden, &part("dequant_sum"));
        let expected = f64::from_le_bytes(expected.try_into().unwrap());
        assert!((sum - expected).abs() <= 1e-9 * expected.abs(), "{sum}, not {expected}");

        let odd = FourBitTensor::quantize(kind, &w[..1000], false);
        assert_eq!(odd.packed, bytes(&golden, &format!("odd.{}", part("packed"))));
        let BlockScales::Single(scales) = &odd.scales else { panic!("not double") };
        assert_same("odd", scales, &floats(&golden, &format!("odd.{}", part("absmax"))));
    }
    let sizes: Vec<f32> = w[..1000].iter().map(|v| v.abs()).collect();
    let maps =
        [(DynamicMap::Signed, "signed", &w[..1000]), (DynamicMap::Unsigned, "unsigned", &sizes)];
    for (map, name, values) in maps {
        let (mut codes, mut absmax) = (vec![0; 1000], vec![0.0; 4]);
        map.quantize(values, 256, &mut codes, &mut absmax);
        assert_eq!(codes, bytes(&golden, &format!("{name}.codes")), "{name}");
        assert_same(name, &absmax, &floats(&golden, &format!("{name}.absmax")));
    }
}

/// The same offset for numbers of scales at which PyTorch's sum takes other ways.
#[test]
fn scales_that_are_all_equal_are_their_own_mean() {
    for n in [1, 7, 8, 31, 32, 33, 512, 513, 16_384, 100_000] {
        let nested = NestedScales::quantize(&vec![0.75; n]);
        assert_eq!(nested.offset.to_bits(), 0.75_f32.to_bits(), "{n}");
        assert!((0..n).all(|b| nested.get(b).to_bits() == 0.75_f32.to_bits()));
    }
}
