//! Singular value decompositions against numpy's, and what must hold of any.

use forgelm_tensor::linalg::{Svd, svd_thin, svd_top};

struct Case {
    name: String,
    m: usize,
    n: usize,
    a: Vec<f32>,
    s: Vec<f64>,
}

fn cases() -> Vec<Case> {
    let lines: Vec<&str> = include_str!("data/svd.txt").lines().skip(1).collect();
    let case = |lines: &[&str]| {
        let head: Vec<&str> = lines[0].split(' ').collect();
        let bits = lines[1].split(' ').map(|hex| u32::from_str_radix(hex, 16).expect("hex"));
        Case {
            name: head[0].to_owned(),
            m: head[1].parse().expect("a number"),
            n: head[2].parse().expect("a number"),
            a: bits.map(f32::from_bits).collect(),
            s: lines[2].split(' ').map(|s| s.parse().expect("a number")).collect(),
        }
    };
    let cases: Vec<Case> = lines.chunks_exact(3).map(case).collect();
    assert_eq!(cases.len(), 11);
    cases
}

fn dot<'a>(x: impl Iterator<Item = &'a f32>, y: impl Iterator<Item = &'a f32>) -> f64 {
    x.zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

fn worst_angle(vectors: &[Vec<f32>]) -> f64 {
    let mut worst: f64 = 0.0;
    for (i, x) in vectors.iter().enumerate() {
        for (j, y) in vectors.iter().enumerate() {
            let expected = if i == j { 1.0 } else { 0.0 };
            worst = worst.max((dot(x.iter(), y.iter()) - expected).abs());
        }
    }
    worst
}

fn columns(u: &[f32], k: usize) -> Vec<Vec<f32>> {
    (0..k).map(|i| u.iter().skip(i).step_by(k).copied().collect()).collect()
}

fn rows(vt: &[f32], n: usize) -> Vec<Vec<f32>> {
    vt.chunks_exact(n).map(<[f32]>::to_vec).collect()
}

/// Largest difference between `u diag(s) vt` and `a`.
fn worst_difference(svd: &Svd, m: usize, n: usize, a: &[f32]) -> f64 {
    let k = svd.s.len();
    let mut worst: f64 = 0.0;
    for i in 0..m {
        for j in 0..n {
            let term = |l: usize| {
                f64::from(svd.u[i * k + l]) * f64::from(svd.s[l]) * f64::from(svd.vt[l * n + j])
            };
            let sum: f64 = (0..k).map(term).sum();
            worst = worst.max((sum - f64::from(a[i * n + j])).abs());
        }
    }
    worst
}

#[test]
fn decompositions_are_numpys_and_give_the_matrix_back() {
    for Case { name, m, n, a, s } in cases() {
        let k = m.min(n);
        let svd = svd_thin(m, n, &a);
        assert_eq!([svd.u.len(), svd.s.len(), svd.vt.len()], [m * k, k, k * n], "{name}");
        for (i, (&found, &expected)) in svd.s.iter().zip(&s).enumerate() {
            let difference = (f64::from(found) - expected).abs();
            assert!(difference <= 1e-7 * s[0], "{name}: value {i} is {found}, not {expected}");
        }
        assert!(svd.s.is_sorted_by(|a, b| a >= b), "{name}: {:?}", svd.s);
        let worst = worst_difference(&svd, m, n, &a);
        assert!(worst <= 3e-7 * s[0], "{name}: off by {worst}");
        let angle = worst_angle(&columns(&svd.u, k)).max(worst_angle(&rows(&svd.vt, n)));
        assert!(angle <= 5e-7, "{name}: not orthonormal by {angle}");
    }
}

#[test]
fn the_first_vectors_alone_are_those_of_the_whole() {
    for Case { name, m, n, a, s } in cases() {
        let all = svd_thin(m, n, &a);
        let k = m.min(n).min(5);
        let top = svd_top(m, n, &a, k);
        assert_eq!(top.s, all.s[..k], "{name}");
        assert_eq!(top.vt, all.vt[..k * n], "{name}");
        assert_eq!(columns(&top.u, k), columns(&all.u, m.min(n))[..k], "{name}");
        assert_eq!(svd_top(m, n, &a, 1000).s.len(), s.len(), "{name}: there are no more");
    }
}

#[test]
fn signs_do_not_depend_on_the_orientation() {
    let Case { m, n, a, .. } = cases().into_iter().find(|case| case.name == "wide").unwrap();
    let svd = svd_thin(m, n, &a);
    let flipped: Vec<f32> = (0..n * m).map(|i| a[i % m * n + i / m]).collect();
    let of_flipped = svd_thin(n, m, &flipped);
    assert_eq!(svd.s, of_flipped.s);
    assert_eq!(columns(&svd.u, m), rows(&of_flipped.vt, m));
    assert_eq!(rows(&svd.vt, n), columns(&of_flipped.u, m));
    for u in columns(&svd.u, m) {
        let largest = u.iter().copied().fold(0.0_f32, |a, b| if b.abs() > a.abs() { b } else { a });
        assert!(largest > 0.0);
    }
}

#[test]
fn what_is_not_finite_stays_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let svd = svd_thin(2, 3, &[1.0, 2.0, 3.0, 4.0, bad, 6.0]);
        assert_eq!([svd.u.len(), svd.s.len(), svd.vt.len()], [4, 2, 6]);
        assert!(svd.u.iter().chain(&svd.s).chain(&svd.vt).all(|x| x.is_nan()));
    }
}

#[test]
fn empty_matrices_have_empty_decompositions() {
    for (m, n) in [(0, 3), (3, 0), (0, 0)] {
        assert_eq!(svd_thin(m, n, &[]), Svd { u: vec![], s: vec![], vt: vec![] });
    }
}
