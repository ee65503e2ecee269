//! JSON for people: indented as Go's `json.Indent` does, tokens untouched.

/// Indent a document by two blanks a level. What is no JSON comes out in some form.
pub(super) fn indent(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    // An opening bracket whose line break waits for the first thing inside.
    let mut opened = false;
    for &byte in json {
        if in_string {
            out.push(byte);
            in_string = escaped || byte != b'"';
            escaped = byte == b'\\' && !escaped;
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        if opened && !matches!(byte, b'}' | b']') {
            depth += 1;
            new_line(&mut out, depth);
        }
        match byte {
            b'}' | b']' if !opened => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                new_line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            _ => out.push(byte),
        }
        opened = matches!(byte, b'{' | b'[');
        in_string = byte == b'"';
    }
    out
}

fn new_line(out: &mut Vec<u8>, depth: usize) {
    out.push(b'\n');
    out.extend(std::iter::repeat_n(b"  ", depth).flatten());
}

/// A value as Go writes it, indented: `<`, `>` and `&` are escaped.
pub(super) fn pretty(value: &impl serde::Serialize) -> String {
    // Plain structs of texts and numbers always have a JSON form.
    let text = serde_json::to_string(value).unwrap_or_default();
    // Outside of strings these can't be.
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let text = text.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    String::from_utf8(indent(text.as_bytes())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let check = |json: &str, expected: &str| {
            assert_eq!(String::from_utf8(indent(json.as_bytes())).unwrap(), expected);
        };
        check("{}", "{}");
        check(r#"{"a":[],"b":{"c":1}}"#, "{\n  \"a\": [],\n  \"b\": {\n    \"c\": 1\n  }\n}");
        check(r#"[ "a,\"{:" , true ]"#, "[\n  \"a,\\\"{:\",\n  true\n]");
        assert_eq!(pretty(&["a<b"]), "[\n  \"a\\u003cb\"\n]");
    }
}
