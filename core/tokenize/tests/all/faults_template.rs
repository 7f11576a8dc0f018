use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use forgelm_tokenize::{
    ChatTemplate, NamedTemplate, RenderOptions, TemplateError, choose_template,
};

use crate::{render, template, tokens, user};

/// Renders in a thread of its own; a template that is not stopped within the time fails the test.
fn render_within(source: &str, limit: Duration) -> Result<String, TemplateError> {
    let (send, receive) = mpsc::channel();
    let in_thread = source.to_owned();
    std::thread::spawn(move || send.send(render(&in_thread)));
    receive.recv_timeout(limit).unwrap_or_else(|_| panic!("not stopped in time: {source}"))
}

#[test]
fn fault_055_templates_that_never_end_or_grow_without_limit_are_stopped_and_named() {
    let endless =
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    let doubling = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let plus = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}";
    let times = "{{ 'a' * 1000000000 }}";
    let replace = "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}";
    let join = "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}";
    let lists = "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | tojson }}";
    let json = "{% set ns = namespace(x='\"') %}{% for i in range(60) %}{% set ns.x = ns.x | tojson %}{% endfor %}{{ ns.x }}";
    let json_wide = "{% for i in range(5000) %}{{ range(90000) | list | tojson }}{% endfor %}";
    let format = "{{ '%1000000000d' % 1 }}{{ '%1000000000d' | format(1) }}{{ '{:>1000000000}'.format('x') }}";
    // A debug build is up to ten times slower than the 10 ms promised for a release build.
    let limit = Duration::from_secs(2);
    let lazy = "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | join }}{{ ns.x | length }}";
    for source in
        [lazy, endless, doubling, plus, times, replace, join, lists, json, json_wide, format]
    {
        let error = render_within(source, limit).unwrap_err();
        assert!(
            matches!(
                error,
                TemplateError::TooMuchWork { line: 1 } | TemplateError::Failed { line: 1, .. }
            ),
            "{source}: {error:?}"
        );
    }
    for source in [endless, doubling, plus] {
        assert!(matches!(render(source), Err(TemplateError::TooMuchWork { line: 1 })), "{source}");
    }
    let line =
        "a\nb\n{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    assert!(matches!(render(line), Err(TemplateError::TooMuchWork { line: 3 })));
}

/// Added lists are lazy: what is tested is that they are refused before they are walked.
#[test]
fn fault_055_lists_that_double_are_stopped() {
    let in_loop = |start: &str, step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}\
             {{% set ns.x = {step} %}}{{% endfor %}}{end}"
        )
    };
    let unrolled =
        format!("{{% set x = [1] %}}{}{{{{ x | length }}}}", "{% set x = x + x %}".repeat(60));
    let recursive = "{% macro f(x, n) %}{% if n %}{{ f(x + x, n - 1) }}{% endif %}{% endmacro %}{{ f([1], 60) }}";
    for source in [
        in_loop("[1]", "ns.x + ns.x", ""),
        in_loop("[1]", "ns.x + ns.x", "{{ ns.x | length }}"),
        in_loop(
            "[]",
            "ns.x + ns.x",
            "{% for i in range(100000) %}{% for j in range(9) %}{% endfor %}{% endfor %}",
        ),
        in_loop("(1,)", "ns.x + ns.x", ""),
        in_loop("[1]", "(ns.x) + (ns.x)[:]", ""),
        in_loop("[1]", "[2] + ns.x * 2 * 2", ""),
        in_loop("[1]", "ns.x + ns.x if i is number else ns.x", ""),
        in_loop("{'a': 1}.items()", "ns.x + ns.x", ""),
        in_loop("range(99999)", "ns.x + ns.x", ""),
        in_loop("[1]", "ns['x'] | list + ns['x']", ""),
        in_loop("[1]", "ns.x | chain(ns.x)", ""),
        in_loop("[1]", "[ns.x, ns.x] | sum(start=[])", ""),
        unrolled,
        recursive.to_owned(),
    ] {
        let error = render_within(&source, Duration::from_secs(2)).unwrap_err();
        let is_named = matches!(
            error,
            TemplateError::TooMuchWork { line: 1 } | TemplateError::Failed { line: 1, .. }
        );
        assert!(is_named, "{source}: {error:?}");
    }
}

/// A list of itself and itself is small; what walks it pays.
#[test]
fn fault_055_lists_that_nest_are_stopped_when_they_are_walked() {
    for end in ["{{ ns.x }}", "{{ ns.x | tojson }}", "{{ {'a': ns.x} }}"] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}\
             {{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{end}"
        );
        render_within(&source, Duration::from_secs(2)).unwrap_err();
    }
}

#[test]
fn numbers_are_summed_and_nothing_else() {
    for (source, expected) in [
        ("{{ [1, 2, 3] | sum }}", "6"),
        ("{{ [1, 2.5] | sum }}", "3.5"),
        ("{{ [] | sum }}{{ [1] | sum(start=2) }}", "03"),
        ("{{ [{'n': 1}, {'n': 4}] | sum(attribute='n') }}", "5"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
    let error = render("{{ ['a', 'b'] | sum }}").unwrap_err();
    assert!(error.to_string().contains("expected numbers"), "{error}");
}

#[test]
fn added_lists_of_usual_size_are_lists() {
    for (source, expected) in [
        ("{{ ([1, 2] + [3]) | length }}{{ ([1] + [2] + [3]) | last }}", "33"),
        ("{% for x in [1, 2][1:] + ['a'] + [] %}{{ x }}{% endfor %}", "2a"),
        (
            "{% set ns = namespace(a=[]) %}{% for x in 'abc' %}{% set ns.a = ns.a + [x] %}{% endfor %}{{ ns.a | join('-') }}",
            "a-b-c",
        ),
        ("{{ ({'a': 1}.items() | list + [2]) | length }}", "2"),
        ("{{ 'a' + ('b' + 'c') | upper + 1 | string }}{{ 1 + 2 * 3 - 1 }}{{ - 1 + 2 }}", "aBC161"),
        ("{{ (1 if 1 + 1 == 2 else 3) + 1 }}{{ 2 + 3 is odd }}", "23"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn fault_055_huge_ranges_and_recursion_are_refused() {
    for source in [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ range(10**18) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n + 1) ~ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% include 'chat_template' %}",
        "{% extends 'chat_template' %}",
    ] {
        let error = render_within(source, Duration::from_secs(2)).unwrap_err();
        assert!(
            matches!(error, TemplateError::TooMuchWork { .. } | TemplateError::Failed { .. }),
            "{source}: {error:?}"
        );
    }
    let nested = format!("{}{}", "{% if true %}".repeat(100_000), "{% endif %}".repeat(100_000));
    assert!(matches!(
        render(&nested),
        Err(TemplateError::TooLong { .. } | TemplateError::Syntax { .. })
    ));
    let brackets = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(matches!(render(&brackets), Err(TemplateError::Syntax { .. })));
}

#[test]
fn long_conversations_have_enough_fuel() {
    let chat = template("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}");
    let mut messages = Vec::new();
    for _ in 0..2000 {
        messages.extend(user(&"word ".repeat(200)));
    }
    let text = chat.render(&messages, &RenderOptions::default()).unwrap().text;
    assert_eq!(text.len(), 2000 * (6 + 999));
    let one = user(&"x".repeat(8 << 20));
    assert_eq!(chat.render(&one, &RenderOptions::default()).unwrap().text.len(), 6 + (8 << 20));
}

/// Known ways out of Jinja sandboxes, and names that would reach the world.
const PAYLOADS: [&str; 24] = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ messages[0].__class__ }}",
    "{{ [].append.__self__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{{ lipsum.__globals__.os }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ config.items() }}",
    "{{ request.application.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ url_for.__globals__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ open('/etc/passwd') }}",
    "{{ env('HOME') }}",
    "{{ debug() }}",
    "{% include '/etc/passwd' %}",
];

#[test]
fn fault_056_templates_that_reach_for_the_world_find_nothing() {
    for payload in PAYLOADS {
        match render(payload) {
            Ok(text) => assert_eq!(text, "", "{payload}"),
            Err(TemplateError::Failed { reason, .. } | TemplateError::Syntax { reason, .. }) => {
                for secret in ["root:", "PATH", "HOME", "uid="] {
                    assert!(
                        !reason.contains(secret) || payload.contains(secret),
                        "{payload}: {reason}"
                    );
                }
            }
            Err(other) => panic!("{payload}: {other:?}"),
        }
    }
    assert_eq!(PAYLOADS.len(), 24);
}

#[test]
fn fault_057_what_real_templates_use_is_there() {
    let now = 1_709_210_096;
    let options = RenderOptions { now: Some(now), ..RenderOptions::default() };
    // Expected values by Jinja 3.1 with transformers' environment.
    for (source, expected) in [
        ("{{ strftime_now('%d %b %Y') }}", "29 Feb 2024"),
        ("{{ messages | tojson }}", r#"[{"role": "user", "content": "Hi"}]"#),
        (
            "{{ {'a': [1, 2.0, true, none, '<é>']} | tojson }}",
            r#"{"a": [1, 2.0, true, null, "<é>"]}"#,
        ),
        ("{{ {'b': 1, 'a': 2} | tojson }}", r#"{"b": 1, "a": 2}"#),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", r#"{"a": 2, "b": 1}"#),
        ("{{ [1, {'k': []}] | tojson(indent=2) }}", "[\n  1,\n  {\n    \"k\": []\n  }\n]"),
        ("{{ 'é\\n' | tojson(ensure_ascii=true) }}", r#""\u00e9\n""#),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ ' a b '.strip().upper() }}", "A B"),
        ("{{ 'a</think>b'.split('</think>')[-1] }}", "b"),
        ("{{ 'abc'.startswith('ab') }} {{ none }} {{ 1 > 2 }}", "True None False"),
        ("{{ {'a': 1}.items() | list | length }}", "1"),
        ("{{ messages[0].get('name', 'none given') }}", "none given"),
        (
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{{ messages[0]['content'] is string }}", "True"),
        ("{{ messages[0].content[:1] }}{{ messages[::-1] | length }}", "H1"),
        ("{% generation %}x{% endgeneration %}", "x"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        ("{{ tools is defined }} {{ undefined_thing }}", "False "),
        ("{%- if messages[0]['role'] == 'user' -%}\n  yes\n{%- endif -%}\n", "yes"),
        ("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"),
    ] {
        let rendered = template(source).render(&user("Hi"), &options).map(|r| r.text);
        assert_eq!(rendered.as_deref().ok(), Some(expected), "{source}: {rendered:?}");
    }
}

#[test]
fn fault_057_raise_exception_is_a_refusal_with_line_and_message() {
    let error = render("a\n{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(
        matches!(&error, TemplateError::Raised { line: 2, message } if message == "roles must alternate")
    );
    assert_eq!(
        error.to_string(),
        "chat template:2: the template refuses the conversation: roles must alternate"
    );
    let inside = "{% macro m() %}\n{{ raise_exception('deep') }}{% endmacro %}\n{{ m() }}";
    assert!(
        matches!(render(inside), Err(TemplateError::Raised { message, .. }) if message == "deep")
    );
}

#[test]
fn fault_058_white_space_and_escaping_follow_the_reference() {
    // The reference trims the line feed after a block tag and the blanks before one at the start of a line,
    // drops one line feed at the end of the source, and escapes nothing.
    for (source, expected) in [
        ("{% if true %}\nx{% endif %}\ny", "xy"),
        ("  {% if true %}x{% endif %}  \n", "x  "),
        ("{{ 'x' }}\ny", "x\ny"),
        ("x\n\n", "x\n"),
        ("{{ '<b>&\"' }}", "<b>&\""),
        ("{# c #}\nx", "x"),
        ("  {#- c #}\nx", "x"),
        ("{%+ if true %}x{% endif +%}\ny", "x\ny"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source:?}");
    }
}

#[test]
fn fault_059_without_a_template_or_with_several_the_choices_are_named() {
    let named = |name: &str| NamedTemplate { name: name.to_owned(), source: name.to_owned() };
    assert!(matches!(choose_template(&[], None), Err(TemplateError::None)));
    assert!(matches!(choose_template(&[], Some("x")), Err(TemplateError::None)));
    let one = [named("chat")];
    assert_eq!(choose_template(&one, None).unwrap().name, "chat");
    let several = [named("tool_use"), named("default"), named("rag")];
    assert_eq!(choose_template(&several, None).unwrap().name, "default");
    assert_eq!(choose_template(&several, Some("rag")).unwrap().name, "rag");
    let error = choose_template(&several, Some("chat")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "chat template `chat`; expected one of `tool_use`, `default`, `rag`\n  hint: set `chat_template:` to the name of one"
    );
    let no_default = [named("tool_use"), named("rag")];
    assert!(
        matches!(choose_template(&no_default, None), Err(TemplateError::Choose { choices, .. }) if choices.len() == 2)
    );
}

#[test]
fn fault_062_the_date_is_the_one_given_and_there_is_no_other() {
    let source = "{{ strftime_now('%Y-%m-%d') }}";
    let at = |now| {
        template(source).render(&user("Hi"), &RenderOptions { now, ..RenderOptions::default() })
    };
    assert_eq!(at(Some(0)).unwrap().text, "1970-01-01");
    let error = at(None).unwrap_err();
    assert!(error.to_string().contains("template_now"), "{error}");
}

#[test]
fn syntax_errors_name_the_line() {
    for (source, at) in [
        ("a\n{% if %}", 2),
        ("\n\n{{ x | }}", 3),
        ("{% for %}", 1),
        ("{{ 'x }}", 1),
        ("{% frobnicate %}", 1),
    ] {
        match ChatTemplate::compile(source, tokens()) {
            Err(TemplateError::Syntax { line, .. }) => assert_eq!(line, at, "{source}"),
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[test]
fn further_variables_reach_the_template() {
    let variables = BTreeMap::from([("enable_thinking".to_owned(), serde_json::json!(false))]);
    let options = RenderOptions { variables, ..RenderOptions::default() };
    let chat =
        template("{% if enable_thinking is defined and enable_thinking is false %}no{% endif %}");
    assert_eq!(chat.render(&user("Hi"), &options).unwrap().text, "no");
}
