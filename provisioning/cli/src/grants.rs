//! `grant add`, `grant list` and `grant remove`.

use tavi_enrol::admin::{GrantList, GrantRow};
use tavi_enrol::grant::{Grant, Subject};
use tavi_enrol::route::ListQuery;
use tavi_fleet::Client;

use crate::args::{GrantParts, Page, Which, Who};
use crate::output::{Failure, Output, more};

pub async fn add(client: &Client, parts: GrantParts, output: &Output) -> Result<(), Failure> {
    let grant = complete(client, parts).await?;
    let row = client.add_grant(&grant).await?;
    output.show(&row, |row| {
        let note = row.note.iter().map(|note| format!("\nNote: {note}"));
        format!("{} {}: {}", if row.grant.rights.deny { "Denied" } else { "Granted" }, row.id, row.grant)
            + &note.collect::<String>()
    })
}

pub async fn list(client: &Client, page: Page, output: &Output) -> Result<(), Failure> {
    let list = match page.query() {
        Some(query) => client.grants_page(&query).await?,
        None => client.grants().await?,
    };
    output.show(&list, table)
}

pub async fn remove(client: &Client, which: Which, output: &Output) -> Result<(), Failure> {
    let id = match which {
        Which::Id(id) => id,
        Which::Parts(parts) => find(client, &complete(client, parts).await?).await?,
    };
    let row = client.remove_grant(&id).await?;
    output.show(&row, |row| format!("Removed grant {}: {}", row.id, row.grant))
}

/// A device's id alone means `ID@things.DOMAIN`, and the broker knows its domain.
async fn complete(client: &Client, parts: GrantParts) -> Result<Grant, Failure> {
    let subject = match parts.subject {
        Who::Subject(subject) => subject,
        Who::Device(id) => Subject::Jid(format!("{id}@things.{}", client.status().await?.domain)),
    };
    Ok(Grant { subject, rights: parts.actions, filter: parts.filter })
}

/// The id of exactly this grant. The broker looks for its subject in the normal form (RFC 7622 §3), as it does when a
/// grant is added.
async fn find(client: &Client, grant: &Grant) -> Result<String, Failure> {
    let mut query = ListQuery { subject: Some(grant.subject.to_string()), ..ListQuery::default() };
    let mut near = Vec::new();
    loop {
        let page = client.grants_page(&query).await?;
        let rows = page.grants.iter().filter(|row| row.grant.filter == grant.filter);
        for row in rows {
            if row.grant.rights == grant.rights {
                return Ok(row.id.clone());
            }
            near.push(line(row));
        }
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    let failure = Failure::new(format!("there is no grant {grant}"));
    Err(match near.as_slice() {
        [] => failure.hint("tavi-fleet grant list shows all grants"),
        near => failure.hint(format!("there is {}", near.join(", "))),
    })
}

fn line(row: &GrantRow) -> String {
    format!("{}: {}", row.id, row.grant)
}

fn table(list: &GrantList) -> String {
    if list.grants.is_empty() {
        return "There are no grants yet. Add one: tavi-fleet grant add SUBJECT ACTIONS FILTER".into();
    }
    let subject = |row: &GrantRow| row.grant.subject.to_string();
    let longest = |cell: &dyn Fn(&GrantRow) -> usize| list.grants.iter().map(cell).max().unwrap_or(0);
    let ids = longest(&|row| row.id.chars().count()).max(2);
    let subjects = longest(&|row| subject(row).chars().count()).max(7);
    let actions = longest(&|row| row.grant.rights.to_string().len()).max(7);
    let row = |row: &GrantRow| {
        let grant = &row.grant;
        format!("{:ids$}  {:subjects$}  {:actions$}  {}", row.id, subject(row), grant.rights, grant.filter)
    };
    let rows: Vec<_> = list.grants.iter().map(row).collect();
    format!(
        "{:ids$}  {:subjects$}  {:actions$}  FILTER\n{}{}",
        "ID",
        "SUBJECT",
        "ACTIONS",
        rows.join("\n"),
        more(list.next.as_deref())
    )
}
