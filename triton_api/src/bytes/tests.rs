use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn decode_hostile_tensor_is_error() {
    let one = [1, 0, 0, 0, b'a'];
    let cases: [(&[u8], usize, BytesError); 9] = [
        (&[], 0, BytesError::NoElements),
        (&one, 0, BytesError::NoElements),
        (&[], 1, BytesError::TooFewElements { expected: 1, found: 0 }),
        (
            &one,
            usize::MAX,
            BytesError::TooFewElements {
                expected: usize::MAX,
                found: 1,
            },
        ),
        (&one[..3], 1, BytesError::TruncatedLength { element: 0, left: 3 }),
        (
            &one[..4],
            1,
            BytesError::TruncatedElement {
                element: 0,
                length: 1,
                left: 0,
            },
        ),
        (
            &[255, 255, 255, 255, b'a'],
            1,
            BytesError::TruncatedElement {
                element: 0,
                length: 4_294_967_295,
                left: 1,
            },
        ),
        (
            &[1, 0, 0, 0, b'a', 0],
            1,
            BytesError::TrailingBytes { expected: 1, left: 1 },
        ),
        (
            &[0, 0, 0, 0, 0, 0, 0, 0],
            1,
            BytesError::TrailingBytes { expected: 1, left: 4 },
        ),
    ];
    for (data, expected, error) in cases {
        assert_eq!(decode_bytes(data, expected), Err(error), "{data:?}");
    }
}

#[test]
fn decode_empty_string_is_an_element() {
    assert_eq!(decode_bytes(&[0; 4], 1), Ok(vec![&[][..]]));
}

proptest! {
    #[test]
    fn encode_then_decode_round_trips(elements in vec(vec(any::<u8>(), 0..40), 1..12)) {
        let data = encode_bytes(&elements).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(Ok(data.len()), encoded_len(&elements));
        let decoded = decode_bytes(&data, elements.len());
        let expected: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(decoded, Ok(expected));
    }

    #[test]
    fn decode_then_encode_round_trips(data in vec(any::<u8>(), 0..80), n in 0_usize..9) {
        if let Ok(elements) = decode_bytes(&data, n) {
            prop_assert_eq!(elements.len(), n);
            prop_assert_eq!(encode_bytes(&elements), Ok(data.clone()));
        }
    }

    // Short elements often make a truncated tensor look valid.
    #[test]
    fn decode_truncated_tensor_is_error(elements in vec(vec(any::<u8>(), 0..6), 1..6), cut in any::<prop::sample::Index>()) {
        let data = encode_bytes(&elements).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(decode_bytes(&data[..cut.index(data.len())], elements.len()).is_err());
        prop_assert!(decode_bytes(&data, elements.len() + 1).is_err());
        prop_assert!(decode_bytes(&data, elements.len() - 1).is_err());
    }
}
