//! Numbers of a run for monitors.

use crate::receiver::{Answers, Receiver};
use crate::support::{Ran, Workplace};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const RUN: [&str; 2] = ["--config", "run.yaml"];

/// A workplace with these keys under `monitoring`.
fn workplace(keys: &str) -> Workplace {
    let workplace = Workplace::new();
    let section = format!("monitoring:\n  enabled: true\n{keys}");
    workplace.write("run.yaml", &(workplace.read("run.yaml") + &section));
    workplace
}

/// The value of a sample whose name and labels begin so.
#[track_caller]
fn sample(text: &str, start: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no {start} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn prometheus_gets_a_file_with_the_numbers_of_the_run() {
    let workplace = workplace("  metrics_export: prometheus\n");
    let dry = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(dry.stdout.contains("out/metrics.prom"), "{}", dry.stdout);
    workplace.run();
    let text = workplace.read("out/metrics.prom");
    let report: Value =
        serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
    let run_id = report["run_id"].as_str().unwrap();
    let labels = format!("{{model=\"model\",risk_tier=\"minimal-risk\",run_id=\"{run_id}\"");
    let steps = workplace.json_lines("out/metrics.jsonl");
    let last = steps.iter().rfind(|line| line.get("loss").is_some()).unwrap();
    let value = |name: &str| sample(&text, &format!("forgelm_{name}{labels}"));
    assert_eq!(value("train_step").to_bits(), 12.0_f64.to_bits());
    assert_eq!(value("train_loss").to_bits(), last["loss"].as_f64().unwrap().to_bits());
    let tokens = last["trained_tokens_total"].as_f64().unwrap();
    assert_eq!(value("train_trained_tokens_total").to_bits(), tokens.to_bits());
    let state = format!("forgelm_run_state{labels},name=\"succeeded\"}}");
    assert_eq!(sample(&text, &state).to_bits(), 1.0_f64.to_bits());
    assert!(!text.contains("name=\"running\""), "{text}");
    let metrics = &report["evaluation_results"]["metrics"];
    let loss = format!("forgelm_run_metric{labels},name=\"eval_loss\"}}");
    assert_eq!(sample(&text, &loss).to_bits(), metrics["eval_loss"].as_f64().unwrap().to_bits());
    // The report says what was configured.
    assert_eq!(report["monitoring"]["metrics_export"], "prometheus");
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn the_page_can_be_read_while_the_run_works() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let keys = format!("  metrics_export: prometheus\n  listen: \"127.0.0.1:{port}\"\n");
    let workplace = workplace(&keys);
    workplace.edit_config("max_steps: 12", "max_steps: 400");
    let mut child = workplace.start(&RUN);
    let start = Instant::now();
    let mut seen = Vec::new();
    while start.elapsed() < Duration::from_secs(60) && seen.len() < 2 {
        let text = get(port).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("forgelm_train_step{"));
        let step = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        if let Some(step) = step.filter(|step| *step > 0 && seen.last() != Some(step)) {
            assert!(text.contains("name=\"running\"} 1"), "{text}");
            seen.push(step);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(seen.len() == 2 && seen[0] < seen[1], "{seen:?}");
}

#[test]
fn a_port_that_is_taken_is_told_before_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let keys = format!("  metrics_export: prometheus\n  listen: \"{address}\"\n");
    let busy = workplace(&keys);
    let told = format!("`monitoring.listen`: {address} cannot be listened at");
    busy.forgelm(&RUN).expect_code(2).expect_stderr(&told);
    assert!(!busy.path("out").exists());
    let named = workplace("  metrics_export: prometheus\n  listen: \"example.org:80\"\n");
    named.forgelm(&RUN).expect_code(1).expect_stderr("expected `ADDRESS:PORT` in numbers");
}

#[test]
fn datadog_gets_series_with_the_key_in_a_header() {
    let receiver = Receiver::start(Answers::Status(202));
    let keys = format!(
        "  metrics_export: datadog\n  endpoint: \"{}\"\n  allow_private_destinations: true\n  \
         api_key_env: DD_KEY\n",
        receiver.url("/api/v2/series")
    );
    let workplace = workplace(&keys);
    // The variable must be there before anything starts.
    workplace.forgelm(&RUN).expect_code(1).expect_stderr("`DD_KEY`");
    let mut command = workplace.command(&RUN);
    command.env("DD_KEY", "secret-api-key");
    let ran = Ran::from(command.output().unwrap()).expect_code(0);
    let received = receiver.received();
    assert!(received.len() >= 2, "at the start and at the end: {}", ran.stderr);
    assert!(received[0].head.starts_with("POST /api/v2/series HTTP/1.1"));
    assert_eq!(received[0].header("DD-API-KEY"), Some("secret-api-key"));
    let last = received.last().unwrap().json();
    let series = last["series"].as_array().unwrap();
    let of = |metric: &str| series.iter().find(|series| series["metric"] == metric).unwrap();
    let step = of("forgelm.train_step");
    assert_eq!(step["points"][0]["value"], 12.0);
    assert!(step["points"][0]["timestamp"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!(step["type"], 3);
    let tags: Vec<&str> =
        step["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap()).collect();
    assert!(tags.contains(&"model:model") && tags.iter().any(|tag| tag.starts_with("run_id:fg-")));
    assert!(!ran.stderr.contains("secret-api-key"));
}

#[test]
fn a_custom_webhook_gets_flat_numbers_as_training_goes_and_at_the_end() {
    let receiver = Receiver::start(Answers::Status(200));
    let keys = "  metrics_export: custom_webhook\n  endpoint_env: MONITOR\n  allow_private_destinations: true\n";
    let workplace = workplace(keys);
    let mut command = workplace.command(&RUN);
    command.env("MONITOR", receiver.url("/numbers?token=hidden"));
    let ran = Ran::from(command.output().unwrap()).expect_code(0);
    let received = receiver.received();
    let (first, last) = (received[0].json(), received.last().unwrap().json());
    let keys: Vec<&String> = last.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["run_id", "generated_at", "metrics"]);
    assert_eq!(first["metrics"]["run_state_running"], 1.0);
    assert_eq!(last["metrics"]["run_state_succeeded"], 1.0);
    assert_eq!(last["metrics"]["train_step"], 12.0);
    assert!(last["metrics"]["baseline_eval_loss"].as_f64() > last["metrics"]["eval_loss"].as_f64());
    let report: Value =
        serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
    assert_eq!(report["monitoring"]["endpoint"], "$MONITOR");
    assert_eq!(report["run_id"], last["run_id"]);
    assert!(!ran.stderr.contains("hidden"), "{}", ran.stderr);
}

#[test]
fn a_monitor_that_is_not_there_is_told_once_and_ends_nothing() {
    let receiver = Receiver::start(Answers::Status(500));
    let keys = format!(
        "  metrics_export: prometheus\n  endpoint: \"{}\"\n  allow_private_destinations: true\n",
        receiver.url("/metrics/job/forgelm/secret-path")
    );
    let workplace = workplace(&keys);
    let ran = workplace.run();
    let told = "warning: monitoring http://127.0.0.1: metrics were not delivered: status 500";
    assert_eq!(ran.stderr.matches(told).count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("pushes did not arrive in all"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("secret-path"), "{}", ran.stderr);
    assert!(receiver.received()[0].body.contains("# TYPE forgelm_run_state gauge"));
    let report = workplace.read("out/compliance/compliance_report.json");
    assert!(!report.contains("secret-path"), "{report}");
    assert!(report.contains("\"endpoint\": \"http://127.0.0.1\""), "{report}");
}
