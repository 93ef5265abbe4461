//! The pickle machine on files that nobody would write by accident.

use proptest::prelude::*;

use super::machine::run;
use super::state::tensors;
use super::value::Value;
use crate::checkpoint::Which;

fn why(bytes: &[u8]) -> String {
    match run(bytes) {
        Ok(_) => panic!("accepted {bytes:?}"),
        Err(why) => why,
    }
}

#[test]
fn a_dict_that_is_referred_to_twice_keeps_its_content() {
    // {'a': d, 'b': d} where d is filled after it was memoised.
    let bytes = b"\x80\x02}(X\x01\0\0\0a}q\x05X\x01\0\0\0kK\x07sX\x01\0\0\0bh\x05u.";
    let (arena, root) = run(bytes).unwrap();
    let top = arena.dict(root).unwrap();
    for key in ["a", "b"] {
        assert_eq!(arena.unsigned(arena.dict(top[key]).unwrap()["k"]), Some(7));
    }
}

#[test]
fn protocol_4_is_read() {
    let bytes = b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94\x8a\x02\x00\x01u.";
    let (arena, root) = run(bytes).unwrap();
    let top = arena.dict(root).unwrap();
    assert_eq!((arena.unsigned(top["a"]), arena.unsigned(top["b"])), (Some(1), Some(256)));
}

#[test]
fn nothing_is_called() {
    let bytes = b"\x80\x02cos\nsystem\nX\x05\0\0\0false\x85R.";
    let (arena, root) = run(bytes).unwrap();
    assert!(matches!(arena.get(root), Value::Opaque));
    assert!(tensors(&arena, root, Which::Ema).is_err());
}

#[test]
fn what_is_wrong_is_located() {
    for (bytes, word) in [
        (&b""[..], "byte 0"),
        (b"\x80\x09.", "protocol 9"),
        (b"\x80\x02.", "stack is empty"),
        (b"(.", "stack is empty"),
        (b"t.", "no mark"),
        (b"h\x07.", "memo 7"),
        (b"X\xff\xff\xff\xffa.", "needs 4294967295 bytes"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "bytes"),
        (b"\x8b\xff\xff\xff\x7f.", "bytes"),
        (b"Na.", "stack is empty"),
        (b"NNa.", "expected a list"),
        (b"NNNs.", "expected a dict"),
        (b"}(Nu.", "without a value"),
        (b"NQ.", "no storage"),
        (b"\x82.", "0x82"),
        (b"cos", "without an end"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "without a valid offset"),
    ] {
        assert!(why(bytes).contains(word), "{bytes:?}: {}", why(bytes));
    }
}

#[test]
fn bombs_end_early() {
    // Ever deeper tuples, which must also be dropped without recursion.
    let mut deep = vec![b'N'];
    deep.resize(1 << 22, 0x85);
    assert!(why(&deep).contains("values"));
    assert!(why(&vec![b'('; 1 << 22]).contains("stack"));
    assert!(why(&[vec![b'N'], vec![b'2'; 1 << 22]].concat()).contains("stack"));
    // One long list, copied into a dict again and again.
    let mut copies = b"](".to_vec();
    (0..1000).for_each(|_| copies.extend_from_slice(b"NN\x86"));
    copies.extend_from_slice(b"eq\x00");
    (0..100_000).for_each(|_| copies.extend_from_slice(b"ccollections\nOrderedDict\nh\x00\x85R0"));
    assert!(why(&copies).contains("elements"));
    // A list that contains itself.
    let (arena, root) = run(b"]q\x00h\x00a.").unwrap();
    assert_eq!(arena.sequence(root), Some(&[root][..]));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = run(&bytes);
    }

    #[test]
    fn any_instructions_are_survived(
        ops in proptest::collection::vec(proptest::sample::select(&b"(01N]})aetsuldRb2QKK\x85\x86\x87\x81\x92\x94h\0q\0."[..]), 0..80),
    ) {
        if let Ok((arena, root)) = run(&ops) {
            let _ = tensors(&arena, root, Which::Model);
        }
    }
}
