-- Every page of the shop: its cache key and what it shows, NULL for one that is not found.
select 'user:' || n.id, (select u.name from users u where u.id = n.id)
  from generate_series(1, 20) as n (id)
union all
select 'user:' || n.id || ':orders',
       (select string_agg(concat_ws('|', o.id, o.state, i.id, i.quantity, p.name, p.price), ','
                          order by o.id, i.id)
          from orders o
          left join order_items i on i.order_id = o.id
          left join products p on p.id = i.product_id
         where o.user_id = n.id)
  from generate_series(1, 20) as n (id)
union all
select 'product:' || n.id,
       (select concat_ws('|', p.name, p.price, c.name,
                         (select string_agg(t.name, ',' order by t.id)
                            from product_tags x
                            join tags t on t.id = x.tag_id
                           where x.product_id = p.id))
          from products p
          left join categories c on c.id = p.category_id
         where p.id = n.id)
  from generate_series(1, 30) as n (id)
union all
select 'category:' || n.id,
       (select concat_ws('|', c.name,
                         (select string_agg(concat_ws(' ', p.id, p.name, p.price), ','
                                            order by p.id)
                            from products p
                           where p.category_id = c.id))
          from categories c
         where c.id = n.id)
  from generate_series(1, 8) as n (id)
union all
select 'tag:' || n.id,
       (select concat_ws('|', t.name,
                         (select string_agg(concat_ws(' ', p.id, p.name), ',' order by p.id)
                            from product_tags x
                            join products p on p.id = x.product_id
                           where x.tag_id = t.id))
          from tags t
         where t.id = n.id)
  from generate_series(1, 8) as n (id)
union all
select 'cart:' || n.id,
       (select string_agg(concat_ws('|', k.id, p.name, p.price, i.quantity), ','
                          order by k.id, p.id)
          from carts k
          join cart_items i on i.cart_id = k.id
          join products p on p.id = i.product_id
         where k.user_id = n.id)
  from generate_series(1, 20) as n (id)
