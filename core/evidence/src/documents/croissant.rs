//! `croissant.json`: the data that was trained on, as Croissant 1.1 with its vocabulary for responsible
//! AI describes it: every file by digest, its rows, its columns.
//!
//! Names within the document are ours and numbered, so that no file or column can take another's.

use serde_json::{Map, Value, json};

use super::annex_iv::{Answers, answers};
use super::evidence::Evidence;
use super::facts::{DataField, DataFileRecord, FieldKind};
use super::inventory::{data_sets, plain};
use super::report::object;

/// File name below the folder of documents.
pub const CROISSANT: &str = "croissant.json";

/// The document; `None` where no data file was read.
#[must_use]
pub fn croissant(evidence: &Evidence) -> Option<Value> {
    let files = &evidence.technical.data_files;
    if evidence.technical.is_standalone || files.is_empty() {
        return None;
    }
    let given = answers(evidence);
    let sets = data_sets(evidence);
    let described: Vec<String> =
        sets.iter().map(|set| format!("{}: {}", set.name, set.size_text())).collect();
    let mut members = object(json!({
        "@context": context(),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": format!("training-data-of-{}", evidence.run_id),
        "description": format!(
            "The data that run {} was trained and validated on. {}",
            evidence.run_id,
            described.join("; ")
        ),
        "dateCreated": evidence.generated_at.to_text_date(),
    }));
    if let Some(name) = given.text("compliance.provider_name") {
        members.insert("creator".to_owned(), json!({"@type": "sc:Organization", "name": name}));
    }
    let languages = &evidence.technical.languages;
    if !languages.is_empty() {
        members.insert("inLanguage".to_owned(), json!(languages));
    }
    members.extend(responsible(evidence, &given));
    let distribution: Vec<Value> = files.iter().enumerate().map(file).collect();
    members.insert("distribution".to_owned(), json!(distribution));
    let sets: Vec<Value> = files.iter().enumerate().filter_map(record_set).collect();
    members.insert("recordSet".to_owned(), json!(sets));
    Some(Value::Object(members))
}

/// What the format's own words mean, as its specification gives it.
fn context() -> Value {
    json!({
        "@language": "en",
        "@vocab": "https://schema.org/",
        "arrayShape": "cr:arrayShape",
        "citeAs": "cr:citeAs",
        "column": "cr:column",
        "conformsTo": "dct:conformsTo",
        "containedIn": "cr:containedIn",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "dct": "http://purl.org/dc/terms/",
        "description": {"@container": "@language"},
        "equivalentProperty": "cr:equivalentProperty",
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "extract": "cr:extract",
        "field": "cr:field",
        "fileProperty": "cr:fileProperty",
        "fileObject": "cr:fileObject",
        "fileSet": "cr:fileSet",
        "format": "cr:format",
        "includes": "cr:includes",
        "isArray": "cr:isArray",
        "isLiveDataset": "cr:isLiveDataset",
        "jsonPath": "cr:jsonPath",
        "key": "cr:key",
        "md5": "cr:md5",
        "name": {"@container": "@language"},
        "parentField": "cr:parentField",
        "path": "cr:path",
        "recordSet": "cr:recordSet",
        "references": "cr:references",
        "regex": "cr:regex",
        "repeated": "cr:repeated",
        "replace": "cr:replace",
        "samplingRate": "cr:samplingRate",
        "sc": "https://schema.org/",
        "separator": "cr:separator",
        "source": "cr:source",
        "subField": "cr:subField",
        "transform": "cr:transform",
    })
}

/// What people say of the data, under the names of the vocabulary.
fn responsible(evidence: &Evidence, given: &Answers) -> Map<String, Value> {
    let texts = [
        ("rai:dataCollection", "data.governance.collection_method"),
        ("rai:dataAnnotationProtocol", "data.governance.annotation_process"),
        ("rai:dataBiases", "data.governance.known_biases"),
        ("rai:dataLimitations", "compliance.annex_iv.data_sheet.gaps"),
        ("rai:dataManipulationProtocol", "compliance.annex_iv.data_sheet.cleaning"),
        ("rai:dataUseCases", "compliance.annex_iv.data_sheet.original_purpose"),
    ];
    let said = texts
        .iter()
        .filter_map(|(name, key)| Some(((*name).to_owned(), Value::String(given.text(key)?))));
    let mut members: Map<String, Value> = said.collect();
    if let Some(has_any) = given.get("data.governance.personal_data_included") {
        let text = format!("personal data included: {}", plain(&has_any));
        members.insert("rai:personalSensitiveInformation".to_owned(), json!(text));
    }
    let filters = evidence.technical.data_filters.iter();
    let filters: Vec<String> =
        filters.map(|(key, value)| format!("{key}: {}", plain(value))).collect();
    if !filters.is_empty() {
        members.insert("rai:dataPreprocessingProtocol".to_owned(), json!(filters));
    }
    members
}

fn file((i, file): (usize, &DataFileRecord)) -> Value {
    let rows = file.rows.map_or_else(String::new, |rows| format!(", {rows} rows"));
    json!({
        "@type": "cr:FileObject",
        "@id": format!("file-{i}"),
        "name": file.file,
        "description": format!("of {}{rows}", file.dataset),
        "contentUrl": path_as_url(&file.file),
        "contentSize": format!("{} B", file.size_bytes),
        "encodingFormat": encoding(&file.file),
        "sha256": file.sha256,
    })
}

/// A path as a relative reference: what is no letter, digit, `-`, `.`, `_`, `~` or `/` becomes `%XX`.
fn path_as_url(path: &str) -> String {
    let mut url = String::with_capacity(path.len());
    for byte in path.trim_start_matches('/').bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                url.push(char::from(byte));
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

/// The media type that a name says, of what is in it; that of a packed file is of its outside.
fn encoding(name: &str) -> &'static str {
    let end = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    match end.as_str() {
        "jsonl" => "application/jsonlines",
        "json" => "application/json",
        "csv" => "text/csv",
        "parquet" => "application/x-parquet",
        "gz" => "application/gzip",
        "zst" => "application/zstd",
        _ => "application/octet-stream",
    }
}

/// The rows of a file, where its columns are known.
fn record_set((i, file): (usize, &DataFileRecord)) -> Option<Value> {
    if file.fields.is_empty() {
        return None;
    }
    let place =
        Place { file: format!("file-{i}"), is_json: encoding(&file.file) == "application/json" };
    let id = format!("records-{i}");
    let fields: Vec<Value> = file
        .fields
        .iter()
        .enumerate()
        .map(|(k, column)| field(&format!("{id}/{k}"), column, &place, None))
        .collect();
    let mut members = object(json!({"@type": "cr:RecordSet", "@id": id, "name": id}));
    if let Some(rows) = file.rows {
        members.insert("description".to_owned(), json!(format!("{rows} rows")));
    }
    members.insert("field".to_owned(), json!(fields));
    Some(Value::Object(members))
}

/// Where the values of a column come from.
struct Place {
    file: String,
    is_json: bool,
}

impl Place {
    /// `path` is that of a member within the values of a column, as JSONPath; empty for the column.
    fn source(&self, column: &str, path: &str) -> Value {
        let file = json!({"@id": self.file});
        if self.is_json {
            let path = format!("$[*]{}{path}", member(column));
            return json!({"fileObject": file, "extract": {"jsonPath": path}});
        }
        let mut source = object(json!({"fileObject": file, "extract": {"column": column}}));
        if !path.is_empty() {
            source.insert("transform".to_owned(), json!({"jsonPath": format!("${path}")}));
        }
        Value::Object(source)
    }
}

/// A member's step in a JSONPath.
fn member(name: &str) -> String {
    format!("[{}]", json!(name))
}

/// A column, or a member of one: `within` is the column with the path to it.
fn field(id: &str, own: &DataField, place: &Place, within: Option<(&str, String)>) -> Value {
    let (column, mut path) = within.unwrap_or((&own.name, String::new()));
    let mut members = object(json!({"@type": "cr:Field", "@id": id, "name": own.name}));
    let source = place.source(column, &path);
    let mut kind = &own.kind;
    if let FieldKind::List(items) = kind {
        members.insert("repeated".to_owned(), json!(true));
        path.push_str("[*]");
        kind = items.as_ref();
    }
    let data_type = match kind {
        FieldKind::Boolean => Some("sc:Boolean"),
        FieldKind::Integer => Some("sc:Integer"),
        FieldKind::Number => Some("sc:Float"),
        // Of several kinds, or lists of lists: as text.
        FieldKind::Text | FieldKind::Other | FieldKind::List(_) => Some("sc:Text"),
        FieldKind::Object(_) => None,
    };
    members.extend(data_type.map(|name| ("dataType".to_owned(), json!(name))));
    members.insert("source".to_owned(), source);
    if let FieldKind::Object(inner) = kind {
        let each = inner.iter().enumerate().map(|(k, one)| {
            let path = format!("{path}{}", member(&one.name));
            field(&format!("{id}/{k}"), one, place, Some((column, path)))
        });
        let each: Vec<Value> = each.collect();
        members.insert("subField".to_owned(), json!(each));
    }
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use super::{croissant, encoding, path_as_url};
    use crate::tests::published::full;
    use serde_json::json;

    #[test]
    fn each_file_has_its_digest_its_rows_and_its_columns() {
        let document = croissant(&full()).unwrap();
        let files = document["distribution"].as_array().unwrap();
        assert_eq!(files.len(), 3);
        assert_eq!(files[1]["sha256"], "d".repeat(64));
        assert_eq!(files[1]["description"], "of extra, 1 rows");
        let fields = document["recordSet"][0]["field"].as_array().unwrap();
        assert_eq!(fields.len(), 5);
        assert_eq!(fields[1]["dataType"], "sc:Integer");
        assert_eq!(fields[1]["source"]["extract"], json!({"column": "n"}));
        assert_eq!(
            (&fields[2]["repeated"], &fields[2]["subField"][2]["repeated"]),
            (&json!(true), &json!(true))
        );
        // What lies within a column is reached from the column.
        let source = |set: usize| {
            let source = &document["recordSet"][set]["field"][2]["subField"][0]["source"];
            (source["extract"].clone(), source["transform"].clone())
        };
        let path = "[*][\"role\"]";
        assert_eq!(
            source(0),
            (json!({"column": "messages"}), json!({"jsonPath": format!("${path}")}))
        );
        let path = format!("$[*][\"messages\"]{path}");
        assert_eq!(source(2), (json!({"jsonPath": path}), json!(null)));
        let json_file = &document["recordSet"][2]["field"][0]["source"]["extract"];
        assert_eq!(json_file, &json!({"jsonPath": "$[*][\"prompt\"]"}));
        assert_eq!(document["rai:dataBiases"], "customers of one country");
    }

    #[test]
    fn names_of_files_become_references_and_formats() {
        assert_eq!(path_as_url("/a b/ü?#%.jsonl"), "a%20b/%C3%BC%3F%23%25.jsonl");
        assert_eq!(encoding("a.JSONL"), "application/jsonlines");
        assert_eq!(encoding("a.jsonl.gz"), "application/gzip");
        assert_eq!(encoding("jsonl"), "application/jsonlines");
        assert_eq!(encoding(""), "application/octet-stream");
    }

    #[test]
    fn data_that_was_not_read_is_not_described() {
        let mut evidence = full();
        evidence.technical.data_files.clear();
        assert!(croissant(&evidence).is_none());
    }
}
