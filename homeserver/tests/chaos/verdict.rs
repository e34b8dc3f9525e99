//! What must hold in the end, whatever happened.

use super::people::{People, Person, ROOM};
use std::collections::{BTreeMap, HashMap};

/// Everything that does not hold, in words.
pub async fn judge(people: &People, nodes: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for members in people.all.chunks(ROOM) {
        let history = members[0].history(&nodes[0]).await;
        for node in &nodes[1..] {
            if members[0].history(node).await != history {
                wrong.push(format!("{}: {node} tells another history", members[0].room));
            }
        }
        said_once(people, members, &history, &mut wrong);
        for person in members {
            saw_all(person, &history, &mut wrong);
            receipts_go_forward(person, &history, &mut wrong);
        }
    }
    letters_came(people, &mut wrong);
    let twice = people
        .book
        .lock()
        .keys
        .iter()
        .filter(|(_, times)| **times > 1)
        .map(|(key, _)| key.clone())
        .collect::<Vec<_>>();
    wrong.extend(twice.into_iter().map(|key| format!("the one-time key {key} was handed out twice")));
    wrong
}

type Members = [std::sync::Arc<Person>];

fn said_once(people: &People, members: &Members, history: &[(String, String)], wrong: &mut Vec<String>) {
    let mut by_mark: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (id, mark) in history {
        by_mark.entry(mark).or_default().push(id);
    }
    wrong.extend(
        by_mark
            .iter()
            .filter(|(_, ids)| ids.len() > 1)
            .map(|(mark, ids)| format!("{mark} is there as {ids:?}")),
    );
    let ours: Vec<String> = members.iter().map(|person| format!("m{:03}.", person.number)).collect();
    for (mark, id) in &people.book.lock().said {
        if ours.iter().any(|prefix| mark.starts_with(prefix))
            && by_mark.get(mark.as_str()).is_none_or(|ids| !ids.contains(&id.as_str()))
        {
            wrong.push(format!("{mark} was acknowledged as {id} and is not there"));
        }
    }
}

fn saw_all(person: &Person, history: &[(String, String)], wrong: &mut Vec<String>) {
    let seen = person.seen.lock();
    if seen.events == history {
        return;
    }
    let at = seen.events.iter().zip(history).take_while(|(seen, there)| seen == there).count();
    wrong.push(format!(
        "person {} saw {} events of {}; the first difference is at {at}: {:?} for {:?}",
        person.number,
        seen.events.len(),
        history.len(),
        seen.events.get(at),
        history.get(at),
    ));
}

fn receipts_go_forward(person: &Person, history: &[(String, String)], wrong: &mut Vec<String>) {
    let places: HashMap<&str, usize> =
        history.iter().enumerate().map(|(at, (id, _))| (id.as_str(), at)).collect();
    let mut newest: HashMap<&str, usize> = HashMap::new();
    let seen = person.seen.lock();
    for (user, id) in &seen.receipts {
        let Some(at) = places.get(id.as_str()) else { continue };
        let before = newest.entry(user).or_insert(*at);
        if at < before {
            wrong.push(format!(
                "person {} saw the receipt of {user} go back from {before} to {at}",
                person.number
            ));
        }
        *before = *at;
    }
}

fn letters_came(people: &People, wrong: &mut Vec<String>) {
    for (mark, to) in &people.book.lock().letters {
        let came = people.all[*to].seen.lock().letters.get(mark).copied().unwrap_or_default();
        if came != 1 {
            wrong.push(format!("the letter {mark} to person {to} came {came} times"));
        }
    }
}
