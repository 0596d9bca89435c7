//! Pages of names, in order, over whatever can answer the first key from a place on.
//!
//! A listing consists of *items*: the visible keys of a bucket that begin with a prefix, except that keys which
//! hold the delimiter behind the prefix are folded into one item, their text up to and including the first
//! delimiter. Items are in the order of their texts. A page holds the first items behind `after`, at most
//! `limit` of them, and `next`, if there are more, is the text of its last item; so following `next` gives
//! every item once, whatever else the client does with its pages.
//!
//! A page seeks: it never walks through the rest of a folded prefix, so it costs one look-up an item.

use std::ops::Bound;

use crate::error::Result;

/// The number of items in a page when the client does not say.
pub const LIMIT_DEFAULT: usize = 1_000;
/// The largest number of items in a page.
pub const LIMIT_MAX: usize = 10_000;

/// Which page of a bucket is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingQuery {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Only items behind this one; empty for the first page.
    pub after: String,
    /// The largest number of items, keys and folded prefixes together.
    pub limit: usize,
    /// Folds keys that hold it behind the prefix; never empty.
    pub delimiter: Option<String>,
}

impl Default for ListingQuery {
    fn default() -> ListingQuery {
        ListingQuery { prefix: String::new(), after: String::new(), limit: LIMIT_DEFAULT, delimiter: None }
    }
}

/// One page of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<V> {
    /// The values of the keys in the page, in the order of the keys.
    pub entries: Vec<V>,
    /// The folded prefixes in the page, in order.
    pub prefixes: Vec<String>,
    /// What to pass as `after` for the following page; absent on the last one.
    pub next: Option<String>,
}

/// The page of a bucket that `query` asks for. `first` answers the first visible key of the bucket from a place on,
/// and its value.
///
/// # Errors
/// What `first` says.
pub fn page<V>(
    query: &ListingQuery,
    mut first: impl FnMut(&Bound<Vec<u8>>) -> Result<Option<(String, V)>>,
) -> Result<Page<V>> {
    let mut page = Page { entries: Vec::new(), prefixes: Vec::new(), next: None };
    let mut last_item = None;
    let mut seek = first_seek(query);
    while let Some((key, value)) = first(&seek)?.filter(|(key, _)| key.starts_with(&query.prefix)) {
        if page.entries.len() + page.prefixes.len() >= query.limit {
            page.next = last_item;
            break;
        }
        match folded(&key, query) {
            Some(prefix) => {
                seek = behind_prefix(prefix);
                last_item = Some(prefix.to_owned());
                page.prefixes.push(prefix.to_owned());
            }
            None => {
                seek = Bound::Excluded(key.as_bytes().to_vec());
                last_item = Some(key);
                page.entries.push(value);
            }
        }
    }
    Ok(page)
}

/// Where the page begins: at the prefix, or behind `after`, whichever is further.
fn first_seek(query: &ListingQuery) -> Bound<Vec<u8>> {
    if query.after < query.prefix || query.after.is_empty() {
        return Bound::Included(query.prefix.clone().into_bytes());
    }
    match folded(&query.after, query) {
        // `after` is a folded prefix, or a key inside of one: that item is not behind `after`.
        Some(prefix) => behind_prefix(prefix),
        None => Bound::Excluded(query.after.clone().into_bytes()),
    }
}

/// The folded prefix that `key` belongs to, if it does to one.
fn folded<'k>(key: &'k str, query: &ListingQuery) -> Option<&'k str> {
    let delimiter = query.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty())?;
    let rest = key.strip_prefix(query.prefix.as_str())?;
    let position = rest.find(delimiter)?;
    key.get(..query.prefix.len() + position + delimiter.len())
}

/// The place behind every key that begins with `prefix`. UTF-8 has no byte 0xFF, so the prefix followed by it
/// sorts behind them all, and before everything else that does.
fn behind_prefix(prefix: &str) -> Bound<Vec<u8>> {
    let mut place = prefix.as_bytes().to_vec();
    place.push(u8::MAX);
    Bound::Included(place)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::store::name::Name;

    /// The first visible key of a bucket from a place on.
    fn first(names: &BTreeMap<Name, bool>, bucket: &str, from: &Bound<Vec<u8>>) -> Option<(String, String)> {
        names
            .iter()
            .filter(|(name, visible)| name.bucket() == bucket && **visible)
            .map(|(name, _)| name.key())
            .find(|key| match from {
                Bound::Included(from) => key.as_bytes() >= from.as_slice(),
                Bound::Excluded(from) => key.as_bytes() > from.as_slice(),
                Bound::Unbounded => true,
            })
            .map(|key| (key.to_owned(), key.to_owned()))
    }

    fn names(texts: &[&str]) -> BTreeMap<Name, bool> {
        texts
            .iter()
            .map(|text| match text.strip_prefix('!') {
                Some(hidden) => (Name::parse(hidden).unwrap(), false),
                None => (Name::parse(text).unwrap(), true),
            })
            .collect()
    }

    fn query(prefix: &str, after: &str, limit: usize, delimiter: &str) -> ListingQuery {
        ListingQuery {
            prefix: prefix.into(),
            after: after.into(),
            limit,
            delimiter: (!delimiter.is_empty()).then(|| delimiter.into()),
        }
    }

    /// Keys, prefixes, next.
    fn listed(
        names: &BTreeMap<Name, bool>,
        bucket: &str,
        query: &ListingQuery,
    ) -> (Vec<String>, Vec<String>, Option<String>) {
        let page = page(query, |from| Ok(first(names, bucket, from))).unwrap();
        (page.entries, page.prefixes, page.next)
    }

    #[test]
    fn pages() {
        let names = names(&[
            "a/x", "b/a", "b/a/1", "b/a/2", "b/a0", "b/b/1", "!b/c/1", "b/d/1", "!b/d/0", "b/é", "b-/z",
            "c/x",
        ]);
        for (asked, keys, prefixes, next) in [
            (query("", "", 100, ""), "a a/1 a/2 a0 b/1 d/1 é", "", None),
            (query("", "", 7, ""), "a a/1 a/2 a0 b/1 d/1 é", "", None),
            (query("", "", 2, ""), "a a/1", "", Some("a/1")),
            (query("", "a/1", 2, ""), "a/2 a0", "", Some("a0")),
            (query("", "a/11", 2, ""), "a/2 a0", "", Some("a0")),
            (query("", "é", 2, ""), "", "", None),
            (query("a", "", 9, ""), "a a/1 a/2 a0", "", None),
            (query("a", "a/2", 9, ""), "a0", "", None),
            (query("a", "b", 9, ""), "", "", None),
            (query("b", "a", 9, ""), "b/1", "", None),
            (query("", "", 9, "/"), "a a0 é", "a/ b/ d/", None),
            (query("", "", 2, "/"), "a", "a/", Some("a/")),
            (query("", "a/", 2, "/"), "a0", "b/", Some("b/")),
            (query("", "a/1", 2, "/"), "a0", "b/", Some("b/")),
            (query("", "b/", 2, "/"), "é", "d/", None),
            (query("a/", "", 9, "/"), "a/1 a/2", "", None),
            (query("a/", "a/", 9, "/"), "a/1 a/2", "", None),
            (query("a", "", 9, "/"), "a a0", "a/", None),
            (query("c", "", 9, "/"), "", "", None),
            (query("d", "", 9, "/1"), "", "d/1", None),
        ] {
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(
                listed(&names, "b", &asked),
                (words(keys), words(prefixes), next.map(str::to_owned)),
                "{asked:?}"
            );
        }
        assert_eq!(listed(&names, "nothing", &query("", "", 9, "")), (vec![], vec![], None));
    }

    #[test]
    fn a_folded_prefix_is_not_walked() {
        let mut names = BTreeMap::new();
        for directory in 0..20 {
            for file in 0..500 {
                names.insert(Name::new("b", &format!("{directory:02}/{file}")).unwrap(), true);
            }
        }
        let looks = Cell::new(0);
        let look = |from: &Bound<Vec<u8>>| {
            looks.set(looks.get() + 1);
            Ok(first(&names, "b", from))
        };
        assert_eq!(page(&query("", "", 100, "/"), look).unwrap().prefixes.len(), 20);
        assert_eq!(looks.get(), 21, "one look an item, and one that finds no more");
    }

    /// The definition of the module header, as directly as it can be written: all items first, then the page.
    fn naive(
        names: &BTreeMap<Name, bool>,
        bucket: &str,
        query: &ListingQuery,
    ) -> (Vec<String>, Vec<String>, Option<String>) {
        let mut items = BTreeSet::new();
        for (name, visible) in names {
            if name.bucket() != bucket || !visible {
                continue;
            }
            let Some(rest) = name.key().strip_prefix(&query.prefix) else { continue };
            match query.delimiter.as_deref().and_then(|delimiter| rest.split_once(delimiter)) {
                Some((part, _)) => {
                    let delimiter = query.delimiter.as_deref().unwrap_or_default();
                    items.insert((format!("{}{part}{delimiter}", query.prefix), true))
                }
                None => items.insert((name.key().to_owned(), false)),
            };
        }
        // Items behind `after`; one that `after` is folded into is not behind it.
        let behind: Vec<_> = items.into_iter().filter(|(text, _)| *text > query.after).collect();
        let next = (behind.len() > query.limit).then(|| behind[query.limit - 1].0.clone());
        let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
        for (text, is_prefix) in behind.into_iter().take(query.limit) {
            if is_prefix { prefixes.push(text) } else { keys.push(text) }
        }
        (keys, prefixes, next)
    }

    fn some_key() -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(vec!["a", "b", "/", "-", "é"]), 1..6)
            .prop_map(|parts| parts.concat())
    }

    fn some_names() -> impl Strategy<Value = BTreeMap<Name, bool>> {
        let entry = (proptest::sample::select(vec!["a", "b", "b-"]), some_key(), any::<bool>());
        proptest::collection::vec(entry, 0..40).prop_map(|entries| {
            entries
                .into_iter()
                .map(|(bucket, key, visible)| (Name::new(bucket, &key).unwrap(), visible))
                .collect()
        })
    }

    fn some_text() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), some_key()]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn a_page_is_what_the_definition_says(
            names in some_names(),
            prefix in some_text(),
            after in some_text(),
            limit in 1usize..6,
            delimiter in proptest::sample::select(vec!["", "/", "a", "-", "/a", "é"]),
        ) {
            let asked = query(&prefix, &after, limit, delimiter);
            prop_assert_eq!(listed(&names, "b", &asked), naive(&names, "b", &asked));
        }

        #[test]
        fn following_next_gives_every_item_once(
            names in some_names(),
            prefix in some_text(),
            limit in 1usize..4,
            delimiter in proptest::sample::select(vec!["", "/", "a"]),
        ) {
            let (keys, prefixes, _) = naive(&names, "b", &query(&prefix, "", 1_000, delimiter));
            let (mut keys_seen, mut prefixes_seen) = (Vec::new(), Vec::new());
            let mut asked = query(&prefix, "", limit, delimiter);
            loop {
                let (mut keys, mut prefixes, next) = listed(&names, "b", &asked);
                keys_seen.append(&mut keys);
                prefixes_seen.append(&mut prefixes);
                match next {
                    Some(next) => asked.after = next,
                    None => break,
                }
            }
            prop_assert_eq!((keys_seen, prefixes_seen), (keys, prefixes));
        }
    }
}
