//! Through the safe surface of `ffi/sdk` where arguments are good, and through the table where they
//! are not.

use super::Kernels;
use crate::watch::Life;
use forgelm_abi::{forgelm_gemm, forgelm_kernels, forgelm_plugin_error, forgelm_work, status};
use forgelm_kernels_api::{GemmDims, GemmLayout, Ops, Write};
use forgelm_kernels_check::counting::Counting;
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_reference::Reference;
use forgelm_sdk::{Failed, kernels};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn table(n_threads: usize) -> &'static forgelm_kernels {
    &Box::leak(Box::new(Kernels::new(Arc::new(Cpu::new(n_threads)), Arc::default()))).table
}

fn on(n_threads: usize) -> kernels::Kernels {
    // SAFETY: a table of this crate.
    unsafe { kernels::Kernels::new(table(n_threads)) }
}

/// Numbers in -1..1 of very different sizes, the same in every run.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
    };
    (0..n).map(|_| next() * 10.0_f32.powf(next() * 6.0)).collect()
}

/// A block and a part, several blocks, and none.
const LENGTHS: [usize; 5] = [0, 1, 1000, 16_384 + 13, 5 * 16_384];

fn close(found: f64, expected: f64, scale: f64) {
    assert!((found - expected).abs() <= 1e-12 * scale, "{found}; expected {expected}");
}

#[test]
fn reductions_are_those_in_f64_and_have_the_same_bits_on_any_number_of_threads() {
    let some = [on(1), on(2), on(3)];
    for n in LENGTHS {
        let (x, y) = (numbers(n), numbers(n + 5));
        let y = &y[5..];
        let wide = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            x.iter().zip(y).map(|(&x, &y)| f(f64::from(x), f64::from(y))).sum()
        };
        let of = |kernels: kernels::Kernels| {
            let sums = [
                kernels.dot(&x, y).unwrap(),
                kernels.sum(&x).unwrap(),
                kernels.sum_of_squares(&x).unwrap(),
            ];
            (sums, kernels.max_abs(&x).unwrap())
        };
        let (sums, max) = of(some[0]);
        close(sums[0], wide(&|x, y| x * y), wide(&|x, y| (x * y).abs()));
        close(sums[1], wide(&|x, _| x), wide(&|x, _| x.abs()));
        close(sums[2], wide(&|x, _| x * x), wide(&|x, _| x * x));
        let expected = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        assert_eq!(max.to_bits(), expected.to_bits());
        for kernels in &some[1..] {
            let (found, found_max) = of(*kernels);
            assert_eq!(found.map(f64::to_bits), sums.map(f64::to_bits), "{n}");
            assert_eq!(found_max.to_bits(), max.to_bits());
        }
    }
    assert!(on(2).max_abs(&[1.0, f32::NAN, 3.0]).unwrap().is_nan());
}

/// Against a sort, with many ties: the threshold, those above it, and those that equal it.
#[test]
fn the_threshold_is_that_of_a_sort() {
    let some = [on(1), on(2), on(3)];
    let rounded = |x: f32| (x * 4.0).round() / 4.0;
    let few_values: Vec<f32> = numbers(40_000).into_iter().map(rounded).collect();
    for x in [numbers(40_000), few_values, vec![-0.5; 20_000], vec![0.0, -0.0]] {
        let mut sorted: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, x.len() / 3 + 1, x.len()] {
            let expected = sorted[k - 1];
            let n_above = sorted.iter().filter(|&&x| x > expected).count();
            for kernels in some {
                let found = kernels.top_k_threshold(&x, k).unwrap();
                assert_eq!((found.threshold, found.n_above), (expected, n_above), "k = {k}");
            }
        }
    }
    let with_nan = [1.0, f32::NAN, -f32::INFINITY, 2.0];
    let found = on(1).top_k_threshold(&with_nan, 2).unwrap();
    assert_eq!((found.threshold, found.n_above), (f32::INFINITY, 1));
    for k in [0, 5] {
        let refused = on(1).top_k_threshold(&with_nan, k).unwrap_err();
        assert_eq!(refused.message, format!("`k` is {k}; expected 1 to 4"));
    }
}

#[test]
fn axpy_rounds_twice_and_touches_every_element_once() {
    for n in LENGTHS {
        let (x, start) = (numbers(n), numbers(n + 3));
        let expected: Vec<u32> =
            x.iter().zip(&start[3..]).map(|(x, y)| (y + 0.3 * x).to_bits()).collect();
        for n_threads in [1, 2, 3] {
            let mut y = start[3..].to_vec();
            on(n_threads).axpy(&mut y, 0.3, &x).unwrap();
            assert_eq!(y.iter().map(|y| y.to_bits()).collect::<Vec<_>>(), expected);
        }
    }
}

/// Against the reference library: every layout, replaced and added.
#[test]
fn products_are_those_of_the_reference() {
    let dims = GemmDims { m: 37, n: 50, k: 700 };
    let small = |n| numbers(n).into_iter().map(|x| x.clamp(-2.0, 2.0)).collect::<Vec<f32>>();
    let (a, b, start) = (small(37 * 700), small(700 * 50), small(37 * 50));
    for layout in [GemmLayout::Nn, GemmLayout::Nt, GemmLayout::Tn] {
        for write in [Write::Replace, Write::Add] {
            let mut expected = start.clone();
            Reference.gemm(
                (&mut expected).into(),
                (&a).into(),
                (&b).into(),
                layout,
                dims,
                0.5,
                write,
            );
            let mut first: Option<Vec<f32>> = None;
            for n_threads in [1, 2, 3] {
                let mut c = start.clone();
                on(n_threads).gemm(&mut c, &a, &b, layout, dims, 0.5, write).unwrap();
                for (c, expected) in c.iter().zip(&expected) {
                    assert!((c - expected).abs() < 1e-3, "{c}; expected {expected}");
                }
                assert_eq!(*first.get_or_insert_with(|| c.clone()), c, "{layout:?} {write:?}");
            }
        }
    }
    let nothing = GemmDims { m: 2, n: 2, k: 0 };
    let mut c = [5.0; 4];
    on(2).gemm(&mut c, &[], &[], GemmLayout::Nn, nothing, 1.0, Write::Replace).unwrap();
    assert_eq!(c.map(f32::to_bits), [0; 4]);
    let refused = on(1).gemm(&mut c, &[1.0], &[], GemmLayout::Nn, nothing, 1.0, Write::Add);
    assert_eq!(refused.unwrap_err().message, "`a` has 1 numbers; expected 2 times 0");
}

/// Not by a loop of the loader's own, which would give much the same numbers.
#[test]
fn products_and_norms_are_computed_by_the_kernel_library() {
    let counting = Arc::new(Counting::new(Arc::new(Cpu::new(2))));
    let table =
        &Box::leak(Box::new(Kernels::new(Arc::clone(&counting) as Arc<dyn Ops>, Arc::default())))
            .table;
    // SAFETY: a table of this crate.
    let kernels = unsafe { kernels::Kernels::new(table) };
    let called =
        || counting.take().into_iter().map(|(op, tally)| (op, tally.calls)).collect::<Vec<_>>();
    let (x, dims) = (numbers(6), GemmDims { m: 2, n: 2, k: 3 });
    kernels.gemm(&mut [0.0; 4], &x, &x, GemmLayout::Nt, dims, 1.0, Write::Replace).unwrap();
    assert_eq!(called(), [("gemm", 1)]);
    kernels.rms_norm(&mut [0.0; 6], &x, &x[..3], 1e-5).unwrap();
    assert_eq!(called(), [("rms_norm_forward", 1)]);
    kernels.parallel_for(5, 2, |_| Ok(())).unwrap();
    kernels.dot(&x, &x).unwrap();
    assert_eq!(called(), [("parallel_for", 2)]);
}

/// A product is our own time; what a body does is the plugin's.
#[test]
fn a_plugin_that_waits_for_a_product_is_served_and_one_in_its_own_body_is_not() {
    let life = Arc::new(Life::default());
    let kernels = Kernels::new(Arc::new(Cpu::new(1)), Arc::clone(&life));
    let table = &Box::leak(Box::new(kernels)).table;
    // SAFETY: a table of this crate.
    let kernels = unsafe { kernels::Kernels::new(table) };
    let is_served = |_| {
        assert!(!life.is_served());
        Ok(())
    };
    kernels.parallel_for(3, 1, is_served).unwrap();
    let (seen, dims) = (AtomicBool::new(false), GemmDims { m: 64, n: 64, k: 64 });
    let x = numbers(64 * 64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !seen.load(Ordering::Relaxed) {
                let mut c = vec![0.0; 64 * 64];
                kernels.gemm(&mut c, &x, &x, GemmLayout::Nn, dims, 1.0, Write::Replace).unwrap();
            }
        });
        while !life.is_served() {
            std::hint::spin_loop();
        }
        seen.store(true, Ordering::Relaxed);
    });
    assert!(!life.is_served());
}

#[test]
fn norms_are_those_of_the_reference() {
    let (n_rows, n_cols) = (70, 33);
    let (x, weight) = (numbers(n_rows * n_cols), numbers(n_cols));
    let (mut expected, mut inv_rms) = (vec![0.0; x.len()], vec![0.0; n_rows]);
    let (y, factors) = ((&mut expected).into(), (&mut inv_rms).into());
    Reference.rms_norm_forward(y, factors, (&x).into(), (&weight).into(), 1e-5);
    let mut first: Option<Vec<f32>> = None;
    for n_threads in [1, 2, 3] {
        let mut y = vec![0.0; x.len()];
        on(n_threads).rms_norm(&mut y, &x, &weight, 1e-5).unwrap();
        for (y, expected) in y.iter().zip(&expected) {
            assert!((y - expected).abs() <= 1e-5 * expected.abs() + 1e-9, "{y}; {expected}");
        }
        assert_eq!(*first.get_or_insert_with(|| y.clone()), y);
    }
    let mut given = vec![0.0; n_rows];
    let (table, mut y) = (table(2), vec![0.0; x.len()]);
    let call = table.rms_norm.unwrap();
    let (y, w, inv) = (y.as_mut_ptr(), weight.as_ptr(), given.as_mut_ptr());
    // SAFETY: arrays of these sizes.
    let ended = unsafe { call(table, n_rows, n_cols, x.as_ptr(), w, 1e-5, y, inv, null_mut()) };
    assert_eq!(ended, status::OK);
    for (found, expected) in given.iter().zip(&inv_rms) {
        assert!((found / expected - 1.0).abs() < 1e-5, "{found}; expected {expected}");
    }
}

/// Against the plain formula, with logits whose exponentials overflow.
#[test]
fn log_probabilities_are_those_of_the_formula() {
    let (n_rows, n_vocab) = (19, 101);
    let logits: Vec<f32> =
        numbers(n_rows * n_vocab).into_iter().map(|x| x.clamp(-50.0, 50.0) + 500.0).collect();
    let labels: Vec<u32> = (0..19).map(|row| row * 5).collect();
    let of = |n_threads| {
        let mut logp = vec![0.0; n_rows];
        on(n_threads).log_softmax_gather(&mut logp, &logits, &labels).unwrap();
        logp
    };
    let found = of(1);
    for (row, (&logp, &label)) in found.iter().zip(&labels).enumerate() {
        let logits = &logits[row * n_vocab..][..n_vocab];
        let wide = |x: f32| f64::from(x) - 500.0;
        let log_sum = logits.iter().map(|&x| wide(x).exp()).sum::<f64>().ln();
        let expected = wide(logits[label as usize]) - log_sum;
        assert!((f64::from(logp) - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{row}");
    }
    assert_eq!((of(2), of(3)), (found.clone(), found));
    let refused = on(1).log_softmax_gather(&mut [0.0], &[1.0, 2.0], &[2]).unwrap_err();
    assert_eq!(refused.message, "`labels`, row 0: 2 is not below 2");
}

#[test]
fn every_item_is_worked_on_once_in_the_ranges_that_sizes_say() {
    for n_threads in [1, 2, 3] {
        for (n, together) in [(0, 3), (1, 1), (10, 3), (12, 3), (5, usize::MAX), (1000, 1)] {
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            let body = |range: std::ops::Range<usize>| {
                assert_eq!(range.start % together, 0);
                assert!(range.len() == together || range.end == n, "{range:?}");
                range.for_each(|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                Ok(())
            };
            on(n_threads).parallel_for(n, together, body).unwrap();
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
    let mut out = [0; 10];
    on(3)
        .for_chunks(&mut out, 4, |i, chunk| {
            chunk.fill(i + 1);
            Ok(())
        })
        .unwrap();
    assert_eq!(out, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]);
}

#[test]
fn the_first_failure_in_the_order_of_items_is_the_one_that_is_told() {
    for n_threads in [1, 2, 3] {
        let failing = |range: std::ops::Range<usize>| match range.start {
            40 | 44 | 90 => Err(Failed::new(format!("item {}", range.start))),
            _ => Ok(()),
        };
        let kernels = on(n_threads);
        for _ in 0..50 {
            let failed = kernels.parallel_for(100, 2, failing).unwrap_err();
            assert_eq!(failed.message, "item 40", "on {n_threads}");
        }
        let panicking = |range: std::ops::Range<usize>| {
            assert_ne!(range.start, 6, "six is too many");
            Ok(())
        };
        let caught = catch_unwind(AssertUnwindSafe(|| kernels.parallel_for(9, 3, panicking)));
        let text = caught.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("six is too many"), "{text}");
    }
    let refused = on(2).parallel_for(3, 0, |_| Ok(())).unwrap_err();
    assert_eq!(refused.message, "`n_together` is 0");
}

/// Row for row the bytes and numbers of the codecs themselves; the row of a number that cannot be.
#[test]
fn rows_are_those_of_the_codecs() {
    use forgelm_tensor::rows::{RowFormat, bytes_per_row, dequantize, quantize};
    let (n_rows, n_cols) = (150, 512);
    let rows: Vec<f32> = numbers(n_rows * n_cols).into_iter().map(|x| x.clamp(-1e3, 1e3)).collect();
    let some = [on(1), on(3)];
    for format in RowFormat::ALL {
        let n_bytes = bytes_per_row(format, n_cols).unwrap();
        let mut expected = vec![0; n_rows * n_bytes];
        quantize(format, &rows, n_cols, &mut expected).unwrap();
        let mut numbers = vec![0.0; rows.len()];
        dequantize(format, &expected, n_cols, &mut numbers).unwrap();
        for kernels in some {
            let name = format.name();
            assert_eq!(kernels.bytes_per_row(name, n_cols).unwrap(), n_bytes);
            let mut bytes = vec![0; expected.len()];
            kernels.quantize(name, &rows, n_cols, &mut bytes).unwrap();
            assert!(bytes == expected, "{name}");
            let mut back = vec![f32::NAN; rows.len()];
            kernels.dequantize(name, &bytes, n_cols, &mut back).unwrap();
            assert!(back == numbers, "{name}");
        }
    }
    let mut holed = rows.clone();
    (holed[99 * n_cols + 7], holed[149 * n_cols]) = (f32::NAN, f32::INFINITY);
    let mut bytes = vec![0; n_rows * 18 * 16];
    let refused = some[1].quantize("q4_0", &holed, n_cols, &mut bytes).unwrap_err();
    assert!(refused.message.starts_with("row 99, column 7: NaN in q4_0"), "{refused}");
    let unknown = some[0].bytes_per_row("q5_x", 64).unwrap_err();
    let expected =
        "`format` is `q5_x`; expected one of nf4, fp4, int8, q8_0, q4_0, q4_1, q4_k, q6_k";
    assert_eq!(unknown.message, expected);
    let narrow = some[0].bytes_per_row("q4_k", 64).unwrap_err();
    assert!(narrow.message.contains("expected a multiple of 256"), "{narrow}");
    let short = some[0].quantize("int8", &rows, n_cols, &mut bytes[..5]).unwrap_err();
    assert_eq!(short.message, "`bytes` has 5 numbers; expected 150 times 516");
}

/// Threads of a merge, each with calls of its own, some of them inside others.
#[test]
fn threads_that_call_at_once_get_what_one_gets() {
    let (kernels, x) = (on(2), numbers(60_000));
    let expected = kernels.sum_of_squares(&x).unwrap();
    let n_right = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let right = |_| {
                        let found = kernels.sum_of_squares(&x)?;
                        n_right.fetch_add(
                            usize::from(found.to_bits() == expected.to_bits()),
                            Ordering::Relaxed,
                        );
                        Ok(())
                    };
                    right(0..1).unwrap();
                    kernels.parallel_for(3, 1, right).unwrap();
                }
            });
        }
    });
    assert_eq!(n_right.into_inner(), 4 * 20 * 4);
}

/// Whatever cannot be is a status and a message, and what is written stays as it was.
#[test]
fn bad_arguments_are_statuses() {
    let table = table(2);
    let mut err = forgelm_plugin_error::new();
    let x = [1.0_f32, 2.0, 3.0, 4.0];
    let mut out = 7.0_f64;
    let (dot, axpy) = (table.dot.unwrap(), table.axpy.unwrap());
    let refused = |ended: i32, err: &mut forgelm_plugin_error, expected: &str| {
        assert_eq!((ended, err.code), (status::INVALID_ARGUMENT, status::INVALID_ARGUMENT));
        assert_eq!(err.text(), expected);
        *err = forgelm_plugin_error::new();
    };
    let odd = x.as_ptr().cast::<u8>().wrapping_add(1).cast::<f32>();
    for (kernels, n, left, expected) in [
        (std::ptr::from_ref(table), 4, null(), "`x` is NULL"),
        (table, usize::MAX, x.as_ptr(), "`x` cannot have 18446744073709551615 numbers"),
        (table, 1 << 61, x.as_ptr(), "`x` cannot have 2305843009213693952 numbers"),
        (table, 2, odd, "`x` is not aligned to its numbers"),
        (null(), 4, x.as_ptr(), "`kernels` is NULL"),
    ] {
        // SAFETY: what cannot be read is refused before.
        let ended = unsafe { dot(kernels, n, left, x.as_ptr(), &raw mut out, &raw mut err) };
        refused(ended, &mut err, expected);
    }
    // SAFETY: four numbers each; a null place is refused.
    let ended = unsafe { dot(table, 4, x.as_ptr(), x.as_ptr(), null_mut(), &raw mut err) };
    refused(ended, &mut err, "`out` is NULL or not aligned");
    assert_eq!(out.to_bits(), 7.0_f64.to_bits());

    let mut y = [1.0_f32; 8];
    let (from, to) = (y.as_ptr().wrapping_add(2), y.as_mut_ptr());
    // SAFETY: inside one array, and refused before it is used.
    refused(
        unsafe { axpy(table, 4, 1.0, from, to, &raw mut err) },
        &mut err,
        "`y` and `x` overlap",
    );
    // SAFETY: likewise; no record.
    let ended = unsafe { axpy(table, 4, 1.0, from, to, null_mut()) };
    assert_eq!((ended, y), (status::INVALID_ARGUMENT, [1.0; 8]));
    // SAFETY: side by side.
    assert_eq!(unsafe { axpy(table, 2, 1.0, from, to, null_mut()) }, status::OK);

    let good = forgelm_gemm {
        struct_size: u32::try_from(size_of::<forgelm_gemm>()).unwrap(),
        layout: 0,
        m: 2,
        n: 2,
        k: 2,
        alpha: 1.0,
        write: 0,
        a: x.as_ptr(),
        b: x.as_ptr(),
        c: to,
    };
    let gemm = table.gemm.unwrap();
    let c = x.as_ptr().cast_mut();
    for (product, expected) in [
        (forgelm_gemm { struct_size: 8, ..good }, "`product` has 8 bytes; expected at least 64"),
        (forgelm_gemm { layout: 9, ..good }, "`layout` is 9, which means nothing"),
        (forgelm_gemm { write: 2, ..good }, "`write` is 2, which means nothing"),
        (
            forgelm_gemm { m: 1 << 40, k: 1 << 40, ..good },
            "no array has 1099511627776 times 1099511627776 numbers",
        ),
        (forgelm_gemm { b: null(), ..good }, "`b` is NULL"),
        (forgelm_gemm { c, ..good }, "`c` and `a` overlap"),
    ] {
        // SAFETY: refused before anything is used.
        refused(unsafe { gemm(table, &raw const product, &raw mut err) }, &mut err, expected);
    }
    // SAFETY: a null product is refused.
    refused(unsafe { gemm(table, null(), &raw mut err) }, &mut err, "`product` is NULL");

    let parallel_for = table.parallel_for.unwrap();
    let nothing = forgelm_work { ctx: null_mut(), run: None };
    for work in [null(), &raw const nothing] {
        // SAFETY: null, or work without a function.
        let ended = unsafe { parallel_for(table, 1, 1, work, &raw mut err) };
        refused(ended, &mut err, "`work` is NULL");
    }
    let norm = table.rms_norm.unwrap();
    // SAFETY: rows of no numbers are refused.
    let ended =
        unsafe { norm(table, 3, 0, x.as_ptr(), x.as_ptr(), 1.0, to, null_mut(), &raw mut err) };
    refused(ended, &mut err, "`n_cols` is 0");
}
