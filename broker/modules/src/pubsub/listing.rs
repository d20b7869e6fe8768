//! Discovery of topics (XEP-0060 §5.1 to §5.5): only what the asker may retrieve, page by page (XEP-0059).

use super::{Answer, Asker, FEATURES, Pubsub, refused};
use crate::{
    disco::{identity, info},
    paging,
};
use std::sync::Arc;
use tavi_xmpp_proto::{Condition, Element, StanzaError, ns};

/// Nodes in one answer, if the asker does not want fewer.
const PAGE: usize = 200;

impl Pubsub {
    /// XEP-0060 §5.1, §5.3.
    pub(super) async fn info(&self, asker: &Asker, node: Option<&str>) -> Result<Answer, StanzaError> {
        let Some(node) = node else {
            return Ok(info([identity("pubsub", "service", "Topics")], FEATURES).into());
        };
        let value = self.parts.topics.retained_value(&asker.principal, node).map_err(refused)?;
        if value.is_none() {
            self.expect_node(node).await?;
        }
        let info = info([identity("pubsub", "leaf", node)], [ns::PUBSUB, ns::DISCO_INFO, ns::DISCO_ITEMS]);
        Ok(info.attr("node", node.to_owned()).into())
    }

    /// XEP-0060 §5.2, §5.5.
    pub(super) async fn items_of(&self, asker: &Asker, query: &Element) -> Result<Answer, StanzaError> {
        match query.get_attr("node") {
            None => Ok(self.nodes(asker, query).await?.into()),
            Some(node) => {
                let value = self.parts.topics.retained_value(&asker.principal, node).map_err(refused)?;
                if value.is_none() {
                    self.expect_node(node).await?;
                }
                let items = value.iter().map(|value| self.entry().attr("name", value.item_id()));
                let query = Element::new(ns::DISCO_ITEMS, "query").attr("node", node.to_owned());
                Ok(query.children(items).into())
            }
        }
    }

    async fn nodes(&self, asker: &Asker, query: &Element) -> Result<Element, StanzaError> {
        let page = Page::read(query)?;
        let found = self.parts.topics.listed_whole(&asker.principal, page.after.as_deref(), page.max).await;
        let found = found.map_err(super::unavailable)?;
        let nodes: Vec<Arc<str>> = found.values.iter().map(|p| p.topic.clone()).collect();
        let items = nodes.iter().map(|node| self.entry().attr("node", node.to_string()));
        let set = (page.asked || found.next.is_some()).then(|| set(&nodes));
        Ok(Element::new(ns::DISCO_ITEMS, "query").children(items).child_opt(set))
    }

    fn entry(&self) -> Element {
        let host = self.parts.hosts.name(crate::PUBSUB);
        Element::new(ns::DISCO_ITEMS, "item").attr("jid", host.to_owned())
    }
}

/// What a `<set/>` asks for (XEP-0059 §2).
pub(crate) struct Page {
    pub(crate) asked: bool,
    pub(crate) after: Option<String>,
    pub(crate) max: usize,
}

impl Page {
    pub(crate) fn read(query: &Element) -> Result<Page, StanzaError> {
        let Some(set) = query.get_child(ns::RSM, "set") else {
            return Ok(Page { asked: false, after: None, max: PAGE });
        };
        let paging::Asked { max, after, before } = paging::Asked::read(set)?;
        // XEP-0059 §2.3: going backwards is not here.
        if before.is_some() {
            return Err(Condition::FeatureNotImplemented.into());
        }
        Ok(Page { asked: true, after, max: max.map_or(PAGE, |max| max.min(PAGE)) })
    }
}

/// XEP-0059 §2.1: the first and the last of this page.
pub(crate) fn set(nodes: &[Arc<str>]) -> Element {
    let id = |node: Option<&Arc<str>>| node.map(|node| node.to_string());
    paging::ends(id(nodes.first()), id(nodes.last()))
}
