use super::{Chosen, Library};
use crate::definition::OutputType;

fn refused(name: &str) -> String {
    Library::find(name).expect_err(name).to_string()
}

#[test]
fn every_built_in_is_understood() {
    let names = Library::names();
    assert_eq!(names.len(), 13 + 4 + 57);
    for name in &names {
        let found = Library::find(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(found[0].name(), name);
    }
    let Ok([Chosen::Group(mmlu)]) = <[_; 1]>::try_from(Library::find("mmlu").unwrap()) else {
        panic!("mmlu is a group")
    };
    assert_eq!(mmlu.members.len(), 4);
    let tasks = Chosen::Group(mmlu);
    let tasks = tasks.tasks();
    assert_eq!(tasks.len(), 57);
    let anatomy = tasks.iter().find(|task| task.name == "mmlu_anatomy").unwrap();
    assert_eq!(
        anatomy.description,
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
    );
    assert_eq!(anatomy.data.name.as_deref(), Some("anatomy"));
    assert!(anatomy.examples.is_first_n);
}

#[test]
fn a_tag_stands_for_all_its_tasks() {
    let names: Vec<String> =
        Library::find("ai2_arc").unwrap().iter().map(|task| task.name().to_owned()).collect();
    assert_eq!(names, ["arc_challenge", "arc_easy"]);
    assert_eq!(Library::find("lambada").unwrap().len(), 2);
}

#[test]
fn an_unknown_name_is_refused_with_the_nearest() {
    assert!(refused("arc_esay").contains("did you mean `arc_easy`?"));
    assert!(refused("xyzzy").contains("a task of your own is named by its file"));
    assert!(refused("mmlu_subject").contains("is not a known benchmark task"));
    assert!(refused("no/such/file.yaml").contains("no/such/file.yaml"));
}

#[test]
fn files_include_files_and_built_ins_and_stand_in_groups() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        forgelm_artifact::write::atomic(&dir.path().join(name), text.as_bytes()).unwrap();
        dir.path().join(name).display().to_string()
    };
    write("_base", "output_type: generate_until\ndoc_to_text: q\ndoc_to_target: a\n");
    let one = write(
        "one.yaml",
        "include: _base\ntask: one\ntag: mine\ndataset_path: d\ntest_split: test\n",
    );
    write("two.yaml", "include: arc_easy\ntask: two\ntag: [mine]\ndataset_path: d\n");
    write("notes.yaml", "just: a note\n");
    let group = write(
        "group.yaml",
        "group: all\ntask: [one, mine, piqa]\naggregate_metric_list:\n- {metric: acc}\n",
    );
    let found = Library::find(&one).unwrap();
    let [Chosen::Task(task)] = found.as_slice() else { panic!("one task") };
    assert_eq!((task.output, task.name.as_str()), (OutputType::GenerateUntil, "one"));
    assert_eq!(task.data.folder.as_deref(), Some(dir.path()));
    let found = Library::find(&group).unwrap();
    let names: Vec<&str> = found[0].tasks().iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["one", "one", "two", "piqa"]);

    let cycle = write("cycle.yaml", "include: cycle.yaml\n");
    assert!(refused(&cycle).contains("nested deeper"));
    let cycle = write("groups.yaml", "group: g\ntask: g\n");
    assert!(refused(&cycle).contains("nested deeper"));
}

#[test]
fn what_is_not_in_the_subset_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.yaml");
    let base = "task: t\ndataset_path: d\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n";
    for (line, text) in [
        ("process_docs: !function utils.process_docs", "the Python function `utils.process_docs`"),
        ("doc_to_choice: [a, !function x.y]", "the Python function `x.y`"),
        ("process_docs: hellaswag", "expected one of `builtin.hellaswag`"),
        ("doc_to_txt: q", "did you mean `doc_to_text`?"),
        ("use_prompt: x", "`use_prompt` is not available here"),
        ("unsafe_code: true", "`unsafe_code` is not available here"),
        ("output_type: multiple", "`output_type` is `multiple`; expected one of"),
        ("output_type: multiple_choice", "no `doc_to_choice`"),
        ("num_fewshot: -1", "`num_fewshot` is the number -1; expected a whole number"),
        ("generation_kwargs: {do_sample: true}", "sampled answers; expected greedy ones"),
        ("generation_kwargs: {temperature: 0.7}", "sampled answers; expected greedy ones"),
        ("generation_kwargs: {max_gen_toks: 0}", "expected a number above 0"),
        ("generation_kwargs: {beams: 2}", "`beams`, which is not understood"),
        ("fewshot_config: {sampler: balanced}", "expected `default` or `first_n`"),
        ("fewshot_config: {fewshot_indices: [1]}", "`fewshot_indices`"),
        ("dataset_kwargs: {token: x}", "expected `data_files`, `data_dir` or `revision`"),
        ("process_results: builtin.truthfulqa_mc2", "with `output_type: multiple_choice`"),
        ("metric_list: [{metric: f1}]", "`f1` is not a metric that is understood"),
        ("include: nowhere", "no such file, and no built-in task"),
        ("repeats: {}", "`repeats` is a mapping"),
        ("tag: 3", "expected a text or a list of texts"),
    ] {
        let yaml = format!("{base}{line}\n");
        forgelm_artifact::write::atomic(&path, yaml.as_bytes()).unwrap();
        let refused = refused(path.to_str().unwrap());
        assert!(refused.contains(text), "{line}: {refused}");
        assert!(refused.contains("t.yaml:"), "{line}: {refused}");
    }
    for (yaml, text) in [
        ("- a\n", "expected the keys of a task"),
        ("task: [\n", "t.yaml:"),
        ("a: 1\na: 2\n", "duplicate"),
        ("doc_to_text: q\n", "no `task`"),
        ("task: t\ndataset_path: d\n", "no `doc_to_text`"),
        ("group: g\ntask: [{task: x}]\n", "give each task a file"),
        ("group: g\ntask: piqa\nfoo: 1\n", "`foo` is not a key of a group"),
        ("group: g\ntask: piqa\naggregate_metric_list: [{aggregation: max}]\n", "not understood"),
    ] {
        forgelm_artifact::write::atomic(&path, yaml.as_bytes()).unwrap();
        let refused = refused(path.to_str().unwrap());
        assert!(refused.contains(text), "{yaml}: {refused}");
    }
}
