//! What the driver says of a device, beyond what the ops need to know: for reports of measurements.

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use forgelm_kernels_api::caught;

use crate::cudnn::{AttentionUnfit, CuDnn, CuDnnUnused};
use crate::device::Device;

/// Names, as they stand in a report, and what the driver calls them.
const PROPERTIES: [(&str, Attribute); 14] = [
    ("multiprocessors", Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
    ("clock_khz", Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
    ("memory_clock_khz", Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
    ("memory_bus_bits", Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH),
    ("level_2_cache_bytes", Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE),
    ("threads_of_a_block", Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
    ("threads_of_a_multiprocessor", Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR),
    (
        "registers_of_a_multiprocessor",
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR,
    ),
    ("shared_bytes_of_a_block", Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
    (
        "shared_bytes_of_a_multiprocessor",
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
    ),
    ("copy_engines", Attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT),
    ("checks_memory_errors", Attribute::CU_DEVICE_ATTRIBUTE_ECC_ENABLED),
    ("is_integrated", Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED),
    ("compute_mode", Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE),
];

impl Device {
    /// Properties by name; those that the driver does not know are left out.
    #[must_use]
    pub fn properties(&self) -> Vec<(&'static str, i32)> {
        let of = |(name, attribute)| {
            let value = self.stream().context().attribute(attribute).ok()?;
            Some((name, value))
        };
        PROPERTIES.into_iter().filter_map(of).collect()
    }

    /// The version of cuBLASLt, where it forms the products.
    #[must_use]
    pub fn cublaslt_version(&self) -> Option<String> {
        let of = |version: usize| {
            format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
        };
        self.blas().map(|blas| of(blas.version()))
    }

    /// The version of cuDNN, where it computes what it can of attention.
    ///
    /// # Errors
    /// Why our own kernels compute all of it.
    pub fn cudnn_version(&self) -> Result<String, CuDnnUnused> {
        self.attention().as_ref().map(CuDnn::version).map_err(Clone::clone)
    }

    /// Compares attention by cuDNN with our own, on heads of these sizes.
    ///
    /// # Errors
    /// Why our own kernels compute it.
    ///
    /// # Panics
    /// Where [`Device::cudnn_version`] is an error: there is nothing to compare.
    pub fn try_attention(
        &self,
        n_heads: usize,
        n_kv_heads: usize,
        head_dim: usize,
    ) -> Result<(), AttentionUnfit> {
        let cudnn = self.cudnn().expect("a trial where cuDNN is used");
        let tried = caught(|| cudnn.try_heads(self, n_heads, n_kv_heads, head_dim));
        tried.unwrap_or_else(|failure| Err(AttentionUnfit::Different(failure.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_emulator as emulator;

    use crate::emulated;

    #[test]
    fn properties_are_those_of_the_driver() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let properties = device.properties();
        assert_eq!(properties.len(), 14);
        assert!(properties.contains(&("memory_bus_bits", 512)));
        assert!(properties.contains(&("shared_bytes_of_a_block", 227 << 10)));
        assert!(device.cublaslt_version().unwrap().starts_with("12."));
        emulator::fail_next("cuDeviceGetAttribute", 1, 0);
        assert_eq!(device.properties().len(), 13);
    }
}
