//! The canonical bytes of documents: those that Go's `encoding/json` writes for the OCI structures.
//! A peer that stores a SOCI index writes it anew under the digest of what it got, so any other
//! form can't be stored.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Annotations, Descriptor, Index, Manifest, Platform};

/// Writer of compact JSON with Go's escapes.
#[derive(Default)]
pub(crate) struct Writer {
    out: String,
    /// Something stands before the next key or element.
    comma: bool,
}

impl Writer {
    pub(crate) fn finish(self) -> Vec<u8> {
        self.out.into_bytes()
    }

    pub(crate) fn object(&mut self, fields: impl FnOnce(&mut Self)) {
        self.nested('{', '}', fields);
    }

    pub(crate) fn array<T>(
        &mut self,
        elements: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.nested('[', ']', |writer| {
            for element in elements {
                writer.separate();
                each(writer, element);
                writer.comma = true;
            }
        });
    }

    fn nested(&mut self, open: char, close: char, inside: impl FnOnce(&mut Self)) {
        self.out.push(open);
        self.comma = false;
        inside(self);
        self.out.push(close);
        self.comma = true;
    }

    fn separate(&mut self) {
        if self.comma {
            self.out.push(',');
        }
        self.comma = false;
    }

    pub(crate) fn field(&mut self, key: &str, value: impl FnOnce(&mut Self)) {
        self.separate();
        self.string(key);
        self.out.push(':');
        value(self);
        self.comma = true;
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.field(key, |writer| writer.string(value));
    }

    /// As [`Self::text`], left out when empty.
    fn text_if_any(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    fn texts_if_any(&mut self, key: &str, values: &[String]) {
        if !values.is_empty() {
            self.field(key, |writer| writer.array(values, |writer, text| writer.string(text)));
        }
    }

    pub(crate) fn number(&mut self, key: &str, value: impl core::fmt::Display) {
        self.field(key, |writer| writer.display(value));
    }

    fn display(&mut self, value: impl core::fmt::Display) {
        // Writing to a string can't fail.
        let _ = write!(self.out, "{value}");
    }

    pub(crate) fn string(&mut self, text: &str) {
        self.out.push('"');
        for char in text.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '<' | '>' | '&' | '\0'..='\u{1f}' | '\u{2028}' | '\u{2029}' => {
                    self.display(format_args!("\\u{:04x}", u32::from(char)));
                }
                _ => self.out.push(char),
            }
        }
        self.out.push('"');
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(value) => self.display(value),
            Value::Number(value) => self.display(value),
            Value::String(text) => self.string(text),
            Value::Array(values) => self.array(values, Self::value),
            Value::Object(fields) => self.object(|writer| writer.others(fields)),
        }
    }

    /// Fields that we don't know; they come last, in the order of their keys.
    fn others(&mut self, fields: &Map<String, Value>) {
        for (key, value) in fields {
            self.field(key, |writer| writer.value(value));
        }
    }

    fn annotations(&mut self, annotations: &Annotations) {
        if annotations.is_empty() {
            return;
        }
        self.field("annotations", |writer| {
            writer
                .object(|writer| annotations.iter().for_each(|(key, text)| writer.text(key, text)));
        });
    }

    fn descriptor(&mut self, descriptor: &Descriptor) {
        self.object(|writer| {
            writer.text("mediaType", &descriptor.media_type);
            writer.field("digest", |writer| {
                writer.display(format_args!("\"{}\"", descriptor.digest));
            });
            writer.number("size", descriptor.size);
            writer.texts_if_any("urls", &descriptor.urls);
            writer.annotations(&descriptor.annotations);
            writer.text_if_any("data", descriptor.data.as_deref().unwrap_or_default());
            if let Some(platform) = &descriptor.platform {
                writer.field("platform", |writer| writer.platform(platform));
            }
            writer.text_if_any("artifactType", &descriptor.artifact_type);
            writer.others(&descriptor.other);
        });
    }

    fn platform(&mut self, platform: &Platform) {
        self.object(|writer| {
            writer.text("architecture", &platform.architecture);
            writer.text("os", &platform.os);
            writer.text_if_any("os.version", &platform.os_version);
            writer.texts_if_any("os.features", &platform.os_features);
            writer.text_if_any("variant", &platform.variant);
        });
    }

    fn subject(&mut self, subject: Option<&Descriptor>) {
        if let Some(subject) = subject {
            self.field("subject", |writer| writer.descriptor(subject));
        }
    }
}

impl Manifest {
    /// The canonical bytes.
    pub fn to_canonical(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.object(|writer| {
            writer.number("schemaVersion", self.schema_version);
            writer.text_if_any("mediaType", &self.media_type);
            writer.text_if_any("artifactType", &self.artifact_type);
            writer.field("config", |writer| writer.descriptor(&self.config));
            writer.field("layers", |writer| writer.array(&self.layers, Writer::descriptor));
            writer.subject(self.subject.as_ref());
            writer.annotations(&self.annotations);
            writer.others(&self.other);
        });
        writer.finish()
    }
}

impl Index {
    /// The canonical bytes.
    pub fn to_canonical(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.object(|writer| {
            writer.number("schemaVersion", self.schema_version);
            writer.text_if_any("mediaType", &self.media_type);
            writer.text_if_any("artifactType", &self.artifact_type);
            writer.field("manifests", |writer| writer.array(&self.manifests, Writer::descriptor));
            writer.subject(self.subject.as_ref());
            writer.annotations(&self.annotations);
            writer.others(&self.other);
        });
        writer.finish()
    }
}
