//! A worker that has a device of its own, to try there what a library does with tensors of one. The
//! program compares nothing: both results are the worker's.

use super::WorkerProgram;
use super::client::{start, unexpected};
use super::wire::{Answer, Ask, KindOf};
use crate::conformance::on_device::PROPERTY;
use crate::conformance::{Finding, OnDevice, Outcome};
use crate::error::LibraryError;
use crate::host::HostServices;
use crate::sealed::LibraryFile;
use crate::trainer::kept_name;
use forgelm_plugin::{Kind, MergeMethods, Quantizers};
use std::sync::Arc;

/// Tries every merge method and quantizer of a library that takes tensors of a device. A worker that
/// dies is the finding of the plugin that was tried.
pub(crate) fn try_on_device(
    file: &LibraryFile,
    program: &WorkerProgram,
    services: Arc<HostServices>,
) -> Result<OnDevice, LibraryError> {
    let (mut worker, loaded) = start(file, program, services)?;
    let device = match worker.ask(&Ask::OpenDevice) {
        Ok(Answer::Device(device)) => device,
        Ok(_) => Err(unexpected()),
        Err(why) => Err(why),
    };
    let mut findings = Vec::new();
    if device.is_err() {
        return Ok(OnDevice { device, findings });
    }
    let merge_methods = loaded.merge_methods.iter().map(|(described, _)| described);
    let merge_methods =
        merge_methods.enumerate().map(|of| (MergeMethods::NAME, KindOf::MergeMethod, of));
    let quantizers = loaded.quantizers.iter().enumerate();
    let quantizers = quantizers.map(|of| (Quantizers::NAME, KindOf::Quantizer, of));
    for (kind, kind_of, (index, described)) in merge_methods.chain(quantizers) {
        let outcome = match worker.ask(&Ask::TryOnDevice { kind: kind_of, index }) {
            Ok(Answer::TriedOnDevice(None)) => continue,
            Ok(Answer::TriedOnDevice(Some(Ok(())))) => Outcome::Holds,
            Ok(Answer::TriedOnDevice(Some(Err(why)))) | Err(why) => Outcome::Fails(why),
            Ok(_) => Outcome::Fails(unexpected()),
        };
        let plugin = kept_name(&described.name);
        findings.push(Finding { kind, plugin, property: PROPERTY, outcome });
        if !worker.is_alive() {
            break;
        }
    }
    Ok(OnDevice { device, findings })
}
