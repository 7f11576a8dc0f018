//! What a quantizer wrote reads as numbers near those that it was given, row by row.

use super::{Finding, Numbers, Tried, same};
use forgelm_plugin::{Plugin, Quantizers};
use forgelm_sdk::quantizer::Quantizer;

pub(super) const N_ROWS: usize = 3;
/// A width that every block format has.
pub(super) const N_COLS: usize = 256;
/// No format may lose more of a number than this share of the largest of its row.
const WORST: f32 = 0.5;

pub(super) fn check(plugin: &Plugin<Quantizers>, found: &mut Vec<Finding>) {
    let mut tried = Tried { plugin, found };
    let Some(quantizer) = tried.built((plugin.build)(&[])) else { return };
    let n_bytes = match quantizer.bytes_per_row(N_COLS) {
        Ok(n_bytes) if n_bytes > 0 => n_bytes,
        Ok(_) => return tried.property("has rows of 256", Err("0 bytes a row".to_owned())),
        Err(failed) => return tried.property("has rows of 256", Err(failed.message)),
    };
    tried.property("has rows of 256", Ok(()));
    let rows = Numbers(3).take(N_ROWS * N_COLS);
    let first = match there_and_back(&*quantizer, &rows, n_bytes) {
        Ok(first) => first,
        Err(failed) => return tried.property("goes there and back", Err(failed)),
    };
    tried.property("goes there and back", near(&first.1, &rows));
    let again = there_and_back(&*quantizer, &rows, n_bytes).and_then(|again| same(&again, &first));
    tried.property("gives the same bytes again", again);
    let alone = there_and_back(&*quantizer, &rows[N_COLS..2 * N_COLS], n_bytes);
    let alone = alone.and_then(|(bytes, _)| same(&&*bytes, &&first.0[n_bytes..2 * n_bytes]));
    tried.property("gives a row the same bytes alone", alone);
    let zeros = there_and_back(&*quantizer, &[0.0; N_COLS], n_bytes);
    let zeros = zeros.and_then(|(_, back)| match back.iter().position(|x| x.abs() > 0.0) {
        None => Ok(()),
        Some(i) => Err(format!("number {i} is {}", back[i])),
    });
    tried.property("keeps zeros", zeros);
}

pub(super) fn there_and_back(
    quantizer: &dyn Quantizer,
    rows: &[f32],
    n_bytes: usize,
) -> Result<(Vec<u8>, Vec<f32>), String> {
    let mut bytes = vec![0; rows.len() / N_COLS * n_bytes];
    let mut back = vec![f32::NAN; rows.len()];
    let result = quantizer.quantize(rows, N_COLS, &mut bytes);
    let result = result.and_then(|()| quantizer.dequantize(&bytes, N_COLS, &mut back));
    result.map_err(|failed| failed.message)?;
    Ok((bytes, back))
}

fn near(back: &[f32], rows: &[f32]) -> Result<(), String> {
    for (row, (back, given)) in back.chunks(N_COLS).zip(rows.chunks(N_COLS)).enumerate() {
        let largest = given.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        for (i, (found, x)) in back.iter().zip(given).enumerate() {
            let distance = (found - x).abs();
            if distance.is_nan() || distance > WORST * largest {
                return Err(format!("row {row}, number {i}: {found} of {x}"));
            }
        }
    }
    Ok(())
}
