//! What making a model from other models is, whatever is done to the weights: the models are found
//! and hashed, and a folder appears whole or not at all, with its evidence in it.

pub mod evidence;
pub mod folder;
pub mod found;
