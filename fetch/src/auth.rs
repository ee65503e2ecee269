//! Authorisation: what a registry asks for, and what we answer.

mod challenge;
mod token;

pub(crate) use challenge::{Challenge, Scheme, parse_challenges};
pub(crate) use token::{TokenRequest, TokenService, basic, bearer, parse_token};
