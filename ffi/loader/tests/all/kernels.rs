//! The host's kernels as plugins see them: from C, from C++ and from Rust.

use crate::batch::Batch;
use crate::build::{Told, built, compile, misbehaves};
use forgelm_loader::{HostServices, Loader};
use forgelm_sdk::merge_method::{Piece, Tensor};
use std::collections::BTreeMap;

/// Every function against its formula; the same bits on any number of threads.
#[test]
fn a_plugin_in_c_gets_what_the_formulas_say() {
    let (_dir, path) = misbehaves(&["LOSS=kernel_metrics", "FEATURES=needs_kernels"]);
    let on = |n_threads| {
        let library = Told::default().loader_on(n_threads).load(&path).unwrap().unwrap();
        let (loss, _) = Batch::texts(2).loss(&*(library.offers.trainers[0].build)(&[]).unwrap());
        loss.metrics.into_iter().map(|metric| (metric.name, metric.sum)).collect::<BTreeMap<_, _>>()
    };
    let found = on(1);
    for n_threads in [2, 3] {
        let bits = |of: &BTreeMap<_, f64>| of.values().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&on(n_threads)), bits(&found), "{n_threads} threads");
    }

    let x: Vec<f64> = (0..40_000).map(|i| f64::from(i * 37 % 101 - 50) / 8.0).collect();
    let start: Vec<f64> = (0..40_000).map(|i| f64::from(i % 7)).collect();
    let y: Vec<f64> = x.iter().zip(&start).map(|(x, y)| y + 2.0 * x).collect();
    let mut sorted: Vec<f64> = x.iter().map(|x| x.abs()).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (threshold, sum) = (sorted[999], |of: &[f64]| of.iter().sum::<f64>());
    let n_above = sorted.iter().filter(|&&x| x > threshold).count();
    let product = |m: usize, n: usize| -> f64 {
        0.5 * (0..40).map(|k| x[m * 40 + k] * y[n * 40 + k]).sum::<f64>()
    };
    let normed = x.chunks(400).flat_map(|row| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / 400.0;
        let inv = 1.0 / (mean + 1e-5).sqrt();
        row.iter().zip(&y).map(move |(x, weight)| (x * inv * weight).powi(2))
    });
    let gathered = [0, 3, 99, 7].into_iter().enumerate().map(|(row, label)| {
        let logits = &x[row * 100..(row + 1) * 100];
        logits[label] - logits.iter().map(|l| l.exp()).sum::<f64>().ln()
    });
    let expected = [
        ("dot", x.iter().zip(&start).map(|(x, y)| x * y).sum::<f64>(), 0.0),
        ("sum_of_squares", x.iter().map(|x| x * x).sum(), 0.0),
        ("max_abs", 6.25, 0.0),
        ("threshold", threshold, 0.0),
        ("n_above", f64::from(u32::try_from(n_above).unwrap()), 0.0),
        ("axpy", sum(&y), 0.0),
        ("parallel_for", sum(&x), 0.0),
        (
            "gemm",
            (0..100).flat_map(|m| (0..200).map(move |n| (m, n))).map(|(m, n)| product(m, n)).sum(),
            1e-4,
        ),
        ("rms_norm", normed.sum(), 1e-4),
        ("log_softmax_gather", gathered.sum(), 1e-6),
        ("n_wrong", 0.0, 0.0),
        ("bytes_per_row", 340.0, 0.0),
        // half a step of 6.25 / 127, and what the scale loses in half precision
        ("off_by", 0.0246, 0.1),
        ("n_refused", 5.0, 0.0),
        ("status", 42.0, 0.0),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (name, expected, tolerance) in expected {
        let found = found[name];
        let off = (found - expected).abs();
        assert!(off <= tolerance * expected.abs(), "{name}: {found}; expected {expected}");
    }
}

/// Long enough for several ranges.
#[test]
fn a_merge_method_in_cpp_gives_the_same_bits_with_kernels_and_without() {
    let (_dir, path) = compile("examples/merge_mean.cpp", &[], &[]);
    let inputs: Vec<Vec<f32>> = (1..=2_u8)
        .map(|k| (0..10_000_u16).map(|i| f32::from(i % 97) / f32::from(k)).collect())
        .collect();
    let merged = |mut loader: Loader| {
        let library = loader.load(&path).unwrap().unwrap();
        let method = (library.offers.merge_methods[0].build)(&[], &[2.0, 1.0]).unwrap();
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let tensor = Tensor { name: "x", len: 10_000, facts: &[] };
        let piece = Piece { tensor, start: 0, base: None, inputs: &inputs };
        let mut out = vec![f32::NAN; 10_000];
        method.merge(&piece, &mut out).unwrap();
        out
    };
    let without = merged(Loader::new(HostServices::silent()));
    assert!(without.iter().enumerate().all(|(i, y)| {
        let x = f64::from(u16::try_from(i % 97).unwrap());
        (f64::from(*y) - (2.0 * x + x / 2.0) / 3.0).abs() < 1e-5
    }));
    for n_threads in [1, 2, 3] {
        assert_eq!(merged(Told::default().loader_on(n_threads)), without);
    }
}

/// More rows than a task has.
#[test]
fn a_quantizer_in_rust_gives_the_same_bytes_with_kernels_and_without() {
    let rows: Vec<f32> = (0..50 * 8_u16).map(|i| f32::from(i * 37 % 101) - 50.0).collect();
    let quantized = |mut loader: Loader| {
        let library = loader.load(&built("forgelm_example_plugin")).unwrap().unwrap();
        let quantizer = (library.offers.quantizers[0].build)(&[]).unwrap();
        let mut bytes = vec![0; 50 * quantizer.bytes_per_row(8).unwrap()];
        quantizer.quantize(&rows, 8, &mut bytes).unwrap();
        bytes
    };
    let without = quantized(Loader::new(HostServices::silent()));
    assert!(without.chunks(12).all(|row| row[4..].iter().any(|&code| code != 0)));
    assert_eq!(quantized(Told::default().loader_on(3)), without);
}

#[test]
fn a_plugin_that_needs_kernels_is_refused_where_there_are_none() {
    let (_dir, path) = misbehaves(&["FEATURES=needs_kernels"]);
    Told::default().loader().load(&path).unwrap();
    let refused = Loader::new(HostServices::silent()).load(&path).unwrap_err().to_string();
    let expected = "`misbehaves` needs `forgelm.kernels/1`, which this program does not offer";
    assert!(refused.contains(expected), "{refused}");
}
