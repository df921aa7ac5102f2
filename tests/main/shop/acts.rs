//! Acts that happen in the shop, in random order.

use rand::RngExt;
use rand::rngs::StdRng;

/// One transaction of a few acts, some of them undone or without effect.
pub(super) fn transaction(random: &mut StdRng) -> String {
    let mut statements = vec!["begin".to_owned()];
    for number in 0..random.random_range(1..=4) {
        let undone = random.random_range(0..8) == 0;
        if undone {
            statements.push(format!("savepoint s{number}"));
        }
        statements.extend(act(random));
        if undone {
            statements.push(format!("rollback to s{number}"));
        }
    }
    statements.push("commit".to_owned());
    statements.join("; ")
}

/// Ids that an act is about.
struct Ids {
    users: [u32; 2],
    products: [u32; 2],
    category: u32,
    tag: u32,
    cart: u32,
    /// Places of orders, or of an item.
    places: [u32; 2],
    number: u32,
}

impl Ids {
    fn new(random: &mut StdRng) -> Ids {
        let mut id = |most: u32| random.random_range(1..=most);
        Ids {
            users: [id(20), id(20)],
            products: [id(30), id(30)],
            category: id(8),
            tag: id(8),
            cart: id(10),
            places: [id(40) - 1, id(40) - 1],
            number: id(1_000),
        }
    }
}

fn there(table: &str, id: u32) -> String {
    format!("exists (select from {table} where id = {id})")
}

fn act(random: &mut StdRng) -> Vec<String> {
    let ids = Ids::new(random);
    match random.random_range(0..28) {
        act @ 0..18 => of_catalogue(act, &ids),
        act => of_orders(act, &ids),
    }
}

fn of_catalogue(act: u32, ids: &Ids) -> Vec<String> {
    let Ids { users: [user, _], products: [product, _], category, tag, number, .. } = ids;
    match act {
        0 => vec![format!("update users set name = 'u {number}' where id = {user}")],
        1 | 2 => vec![format!("update categories set name = 'c {number}' where id = {category}")],
        3 | 4 => vec![format!("update products set name = 'p {number}' where id = {product}")],
        5 | 6 => vec![format!("update products set price = {number} where id = {product}")],
        7 => vec![format!("update products set stock = {number} where id = {product}")],
        8 => vec![format!("update products set name = name where id = {product}")],
        9 | 10 => vec![format!(
            "update products set category_id = {category} where id = {product} and {}",
            there("categories", *category)
        )],
        11 => vec![format!("delete from products where id = {product}")],
        12 | 13 => vec![format!(
            "insert into products values ({product}, null, 'new {number}', {number}) \
             on conflict do nothing"
        )],
        14 => vec![format!(
            "insert into product_tags select p.id, {tag} from products p \
              where p.id % 6 = {product} % 6 and {} on conflict do nothing",
            there("tags", *tag)
        )],
        15 => vec![format!(
            "delete from product_tags \
              where product_id = {product} or tag_id = {tag} and {number} < 300"
        )],
        16 => vec![format!("update tags set name = 't {number}' where id = {tag}")],
        17 if number % 2 == 0 => vec![
            format!("delete from tags where id = {tag}"),
            format!("insert into tags values ({tag}, 'again {number}')"),
            format!(
                "insert into product_tags select {product}, {tag} where {}",
                there("products", *product)
            ),
        ],
        _ => vec![
            format!("delete from categories where id = {category}"),
            format!("insert into categories values ({category}, 'again {number}')"),
            format!("update products set category_id = {category} where id % 8 = {category} % 8"),
        ],
    }
}

fn of_orders(act: u32, ids: &Ids) -> Vec<String> {
    let Ids { users: [user, other_user], products: [product, other_product], cart, .. } = ids;
    let (number, [place, other_place]) = (ids.number, ids.places);
    let order = |place: u32| format!("(select id from orders order by id offset {place} limit 1)");
    let item = format!("(select id from order_items order by id offset {place} limit 1)");
    let (order, other_order) = (order(place), order(other_place));
    match act {
        18 => vec![
            format!("insert into orders (user_id) values ({user})"),
            format!(
                "insert into order_items (order_id, product_id) \
                 select max(o.id), p.id from orders o, products p \
                  where p.id in ({product}, {other_product}) group by p.id"
            ),
        ],
        19 => vec![format!("update orders set state = 's {number}' where id = {order}")],
        20 => vec![format!("update orders set user_id = {other_user} where id = {order}")],
        21 => vec![format!("delete from orders where id = {order}")],
        22 => vec![format!("update order_items set quantity = {number} where id = {item}")],
        23 => vec![format!(
            "update order_items set order_id = {other_order} where id = {item} \
                and {other_order} is not null"
        )],
        24 => vec![
            format!("insert into carts values ({cart}, {user}) on conflict do nothing"),
            format!(
                "insert into cart_items select {cart}, {product}, {number} where {} \
                 on conflict (cart_id, product_id) do update set quantity = excluded.quantity",
                there("products", *product)
            ),
        ],
        25 => vec![format!("update carts set user_id = {other_user} where id = {cart}")],
        _ => vec![
            format!("insert into orders (user_id) select user_id from carts where id = {cart}"),
            format!(
                "insert into order_items (order_id, product_id, quantity) \
                 select (select max(id) from orders), product_id, quantity from cart_items \
                  where cart_id = {cart} and exists (select from orders)"
            ),
            format!("delete from carts where id = {cart}"),
        ],
    }
}
