//! Random bits for plugins: a function of a counter and a key, so that nothing depends on threads
//! or on what was drawn before.

pub use forgelm_kernels_api::philox::philox4x32;
