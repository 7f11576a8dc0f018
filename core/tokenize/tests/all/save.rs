use forgelm_tokenize::Tokenizer;

use crate::{smollm2, tiny};

#[test]
fn a_saved_tokenizer_reads_back_as_the_same() {
    for tokenizer in [tiny(), smollm2()] {
        let dir = tempfile::tempdir().unwrap();
        let files = tokenizer.save(dir.path()).unwrap();
        let names: Vec<_> =
            files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "chat_template.jinja"
            ]
        );
        let again = Tokenizer::from_folder(dir.path()).unwrap();
        assert_eq!(again.special_ids(), tokenizer.special_ids());
        assert_eq!(again.vocab_size(), tokenizer.vocab_size());
        assert_eq!(again.templates(), tokenizer.templates());
        for text in ["Hello, world 123!", "  a\n\n<|im_end|> é 日本 🙂", "it's 3.5"] {
            assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
            assert_eq!(
                again.encode_with_specials(text).unwrap(),
                tokenizer.encode_with_specials(text).unwrap()
            );
        }
        let second = tempfile::tempdir().unwrap();
        again.save(second.path()).unwrap();
        for name in names {
            let (a, b) = (
                std::fs::read(dir.path().join(name)).unwrap(),
                std::fs::read(second.path().join(name)).unwrap(),
            );
            assert!(a == b, "{name} differs when saved again");
        }
    }
}
