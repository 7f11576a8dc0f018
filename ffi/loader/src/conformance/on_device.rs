//! What a merge method or a quantizer gives for tensors of a device is what it gives for tensors of the
//! host, to the last bit.

use super::Numbers;
use super::merge_method::{LEN, Models, equal, n_inputs};
use super::quantizer::{N_COLS, N_ROWS, there_and_back};
use forgelm_kernels_api::{Format, Host, HostMut, OnDevice, Placed};
use forgelm_merge::MergedOnDevice;
use forgelm_plugin::{MergeMethods, Plugin, Quantizers};
use forgelm_sdk::Failed;
use forgelm_sdk::merge_method::Scope;
use forgelm_sdk::quantizer::QuantizeOnDevice;

/// As a finding says it.
pub(crate) const PROPERTY: &str = "gives on a device the bits of the processor";

/// `None` for a method that takes no tensors of a device, or cannot be made without options.
pub(crate) fn merge_method(
    plugin: &Plugin<MergeMethods>,
    device: &dyn OnDevice,
) -> Option<Result<(), String>> {
    let n = n_inputs(&plugin.needs);
    let method = (plugin.build)(&[], &vec![0.5; n]).ok()?;
    let there = MergedOnDevice::new(&*method, device)?;
    let mut numbers = Numbers(4);
    let models = Models::of(&mut numbers, n);
    let of_elements = plugin.needs.scope == Scope::Elements;
    // In pieces too, which begin where no vector does.
    let pieces = if of_elements { &[LEN, 7][..] } else { &[LEN] };
    let same = |&piece: &usize| {
        let here = models.merged(&*method, piece)?;
        equal(&models.merged(&there, piece)?, &here)
    };
    Some(pieces.iter().try_for_each(same))
}

/// `None` for a quantizer that takes no tensors of a device, or cannot be made without options.
pub(crate) fn quantizer(
    plugin: &Plugin<Quantizers>,
    device: &dyn OnDevice,
) -> Option<Result<(), String>> {
    let quantizer = (plugin.build)(&[]).ok()?;
    let there = quantizer.on_device()?;
    let rows = Numbers(5).take(N_ROWS * N_COLS);
    let compare = || {
        let n_bytes = quantizer.bytes_per_row(N_COLS).map_err(|failed| failed.message)?;
        let (bytes, back) = there_and_back(&*quantizer, &rows, n_bytes)?;
        let found = there_and_back_on_device(there, device, &rows, bytes.len());
        let (found_bytes, found_back) = found.map_err(|failed| failed.message)?;
        match found_bytes.iter().zip(&bytes).position(|(found, expected)| found != expected) {
            None => equal(&found_back, &back),
            Some(i) => {
                let (row, at, found, expected) =
                    (i / n_bytes, i % n_bytes, found_bytes[i], bytes[i]);
                Err(format!("byte {at} of row {row} is {found}; expected {expected}"))
            }
        }
    };
    Some(compare())
}

fn there_and_back_on_device(
    quantizes: &dyn QuantizeOnDevice,
    device: &dyn OnDevice,
    rows: &[f32],
    n_bytes: usize,
) -> Result<(Vec<u8>, Vec<f32>), Failed> {
    let from = Placed::copied(device, Host::F32(rows))?;
    let to = Placed::zeros(device, Format::U8, n_bytes)?;
    quantizes.quantize(from.part, N_COLS, to.part)?;
    let (mut bytes, mut back) = (vec![0; n_bytes], vec![f32::NAN; rows.len()]);
    device.download(to.part, HostMut::U8(&mut bytes))?;
    let again = Placed::zeros(device, Format::F32, rows.len())?;
    quantizes.dequantize(to.part, N_COLS, again.part)?;
    device.download(again.part, HostMut::F32(&mut back))?;
    Ok((bytes, back))
}
